"""Answers held to JSON schemas; and schemas that somebody sends who means no good."""

import json
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.drawing import Drawer
from p2pgrid.engine.json_schema import CONTAINERS_MAX, JsonGrammar, _containers
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.wire.messages import SCHEMA_CHARS_MAX, Sampling
from tests.toy_tokenizer import END, FIRST_BYTE, VOCAB, grammars

GRAMMARS = grammars()
POINTS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "boolean"}, "z": {"type": "string", "maxLength": 2}},
        "required": ["x"],
        "additionalProperties": False,
    },
    "minItems": 1,
    "maxItems": 3,
}


def grammar(schema: Any) -> JsonGrammar:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return trio.run(GRAMMARS.grammar, text)


def ids(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


def text_of(answer: list[int]) -> str:
    return bytes(token - FIRST_BYTE for token in answer if token >= FIRST_BYTE).decode("utf-8", "replace")


def drawn(found: JsonGrammar, seed: int, most: int = 300) -> list[int]:
    """An answer of any of the allowed tokens; numbers and spaces are kept from growing."""
    rng = np.random.default_rng(seed)
    answer: list[int] = []
    while len(answer) < most and answer[-1:] != [END]:
        allowed = np.flatnonzero(found.allowed(answer)).tolist()
        closing = [token for token in allowed if token == END or token in ids(',]}":')]
        answer.append(int(rng.choice(closing if closing and rng.random() < 0.5 else allowed)))
    return answer


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_whatever_is_drawn_fits_and_ends(seed: int) -> None:
    answer = drawn(grammar(POINTS), seed)
    if answer[-1] != END:
        return
    points = json.loads(text_of(answer))
    assert 1 <= len(points) <= 3
    for point in points:
        assert isinstance(point["x"], int) and set(point) <= {"x", "y", "z"}
        assert isinstance(point.get("y", True), bool) and len(point.get("z", "")) <= 2


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=25, deadline=None)
def test_what_is_allowed_depends_on_the_answer_and_not_on_the_way_to_it(seed: int, cuts: list[int]) -> None:
    answer = drawn(grammar(POINTS), seed, 40)
    crooked = grammar(POINTS)
    for cut in cuts:
        crooked.follow(answer[:cut])
    straight = grammar(POINTS)
    for length in range(len(answer)):
        assert np.array_equal(crooked.allowed(answer[:length]), straight.allowed(answer[:length]))


def test_a_whole_document_can_only_end() -> None:
    allowed = grammar({"enum": ["yes"]}).allowed(ids('"yes"'))
    assert np.flatnonzero(allowed).tolist() == [END]
    assert len(allowed) == VOCAB


def test_an_answer_that_does_not_fit_is_a_fault() -> None:
    found = grammar({"enum": ["yes"]})
    for answer in ([*ids('"ye'), END], ids('"no')):
        with pytest.raises(LocalFault, match="within its JSON schema"):
            found.allowed(answer)


def test_an_end_that_is_taken_back_leaves_no_trace() -> None:
    found = grammar({"enum": ["yes", "yesterday"]})
    assert np.flatnonzero(found.allowed([*ids('"yes"'), END])).tolist() == [END]
    assert np.flatnonzero(found.allowed(ids('"yes'))).tolist() == sorted(ids('"t'))


def test_what_is_not_allowed_is_not_drawn_at_any_temperature() -> None:
    logits = np.zeros(VOCAB + 8, np.float32)  # padded, as the output matrices of some models are
    logits[VOCAB:] = 50
    for sampling in (Sampling(), Sampling(2.0), Sampling(2.0, top_k=40), Sampling(2.0, top_p=0.9)):
        drawer = Drawer(sampling, logprobs=1)
        drawer.grammar = grammar({"type": "boolean"})
        found = drawer.draw(logits, 0)
        assert text_of([found.token]) in "tf \n"
        assert found.logprobs is not None and found.logprobs.top_ids[0] == VOCAB, "the model's own opinion"


# ── schemas that cannot be used ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{nope", "no JSON"),
        ("", "no JSON"),
        ("[1]", "is an object"),
        ("true", "is an object"),
        ('{"const": "\\ud800"}', "JSON"),
        ({"type": "nothing"}, "cannot be used"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://192.0.2.1/schema.json"}, "cannot be used"),
        ({"$ref": "#/nowhere"}, "cannot be used"),
        ({"type": "string", "pattern": "(" * 500 + ")" * 500}, "cannot be used"),
        ({"type": "object", "x-guidance": {"lenient": True}}, "x-guidance"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no document fits"),
        ({"multipleOf": 999_983}, "multipleOf"),
        ({"multipleOf": 1e300}, "multipleOf"),
        ({"multipleOf": 0.12345678}, "multipleOf"),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 101}, {"multipleOf": 103}]}, "multipleOf"),
        ({"enum": [[i] for i in range(CONTAINERS_MAX)]}, "objects and lists"),
        ({"const": "x" * SCHEMA_CHARS_MAX}, "characters"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "JSON|characters|objects"),
    ],
)
def test_a_schema_that_is_none_or_costs_too_much_is_bad_input(schema: Any, why: str) -> None:
    with pytest.raises(BadInput, match=why) as raised:
        grammar(schema)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["items", "allOf", "anyOf", "properties"])
def test_the_deepest_nesting_that_is_allowed_does_not_overflow_a_threads_stack(kind: str) -> None:
    """Each definition refers to the next; a process that overflows is gone."""
    parts = {
        "items": lambda ref: {"items": ref},
        "allOf": lambda ref: {"allOf": [ref]},
        "anyOf": lambda ref: {"anyOf": [ref]},
        "properties": lambda ref: {"properties": {"": ref}, "required": [""]},
    }
    level = parts[kind]({"$ref": "#/$defs/100"})
    chars = len(json.dumps({"100": level}, separators=(",", ":"))) - 1
    depth = min((SCHEMA_CHARS_MAX - 200) // chars, (CONTAINERS_MAX - 3) // len(list(_containers(level))))
    definitions = {str(i): parts[kind]({"$ref": f"#/$defs/{i + 1}"}) for i in range(depth)}
    schema = json.dumps({"$defs": definitions | {str(depth): {}}, "$ref": "#/$defs/0"}, separators=(",", ":"))
    assert depth > 200

    async def main() -> JsonGrammar:
        return await trio.to_thread.run_sync(GRAMMARS._grammar, schema)

    assert trio.run(main).allowed([]).any()


def test_schemas_that_were_compiled_are_kept_but_not_for_ever() -> None:
    for number in range(30):
        grammar({"const": number})
    assert len(GRAMMARS._compiled) <= 8
