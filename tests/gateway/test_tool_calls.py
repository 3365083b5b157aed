"""Calls in the text of an answer: the same ones however the text comes, and nothing of it is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.gateway.tool_calls import CLOSE, OPEN, CallReader, ToolCall

WEATHER = '{"name": "weather", "arguments": {"city": "Oslo"}}'
CALL = ToolCall("weather", '{"city": "Oslo"}')


def read(*pieces: str, called: bool = False) -> list[str | ToolCall]:
    """All that a reader gives back, texts that follow one another as one."""
    reader = CallReader(called=called)
    found: list[str | ToolCall] = []
    for part in [*(part for piece in pieces for part in reader.push(piece)), *reader.finish()]:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{OPEN}\n{WEATHER}\n{CLOSE}", [CALL]),
        (
            f"Let me see.\n{OPEN}{WEATHER}{CLOSE}\n\n{OPEN}{WEATHER}{CLOSE} Done. ",
            ["Let me see.", CALL, CALL, "Done. "],
        ),
        (f"  a <tool {OPEN}{WEATHER}", ["  a <tool", CALL]),
        (f"a {OPEN}nonsense{CLOSE} b", [f"a {OPEN}nonsense{CLOSE} b"]),
        (f'{OPEN}{{"name": "f", "arguments": "x"}}{CLOSE}', [f'{OPEN}{{"name": "f", "arguments": "x"}}{CLOSE}']),
        (f'{OPEN}{{"name": "f", "argu', [f'{OPEN}{{"name": "f", "argu']),
        (" \n", [" \n"]),
        ("", []),
    ],
)
def test_calls_are_told_from_the_text_around_them(text: str, found: list[str | ToolCall]) -> None:
    assert read(text) == found


def test_an_answer_may_be_a_call_whatever_its_arguments_say() -> None:
    assert read(WEATHER, called=True) == [CALL]
    tags = f'{{"text": "{OPEN} and {CLOSE}"}}'
    assert read(f'{{"name": "note", "arguments": {tags}}}', called=True) == [ToolCall("note", tags)]
    assert read(WEATHER[:20], called=True) == [WEATHER[:20]], "cut off, it is what the model said"


PARTS = st.lists(
    st.sampled_from([OPEN, CLOSE, WEATHER, " ", "\n", "text", "<", "<tool_", "tool_call>", "{}", '{"name": "é"}'])
)


@given(PARTS, st.data())
def test_any_pieces_of_a_text_give_the_same(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(text)


@given(PARTS)
def test_no_text_is_lost_and_every_call_is_one(parts: list[str]) -> None:
    text = "".join(parts)
    found = read(text)
    rest = "".join(text.split())
    for part in found:
        if isinstance(part, str):
            kept = "".join(part.split())
            assert rest.startswith(kept)
            rest = rest.removeprefix(kept)
        else:
            assert isinstance(json.loads(part.arguments), dict)
            rest = rest.removeprefix(OPEN + "".join(WEATHER.split())).removeprefix(CLOSE)
    assert not rest
