"""A conversation: what the model is told of it, its /commands, and that an error does not end it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.api.blocking import BlockingGrid, connect_blocking
from p2pgrid.api.grid import Options
from p2pgrid.cli.chat import talk
from p2pgrid.cli.chat_input import joined
from p2pgrid.cli.console import printable
from p2pgrid.cli.conversation import COMMANDS, Conversation, Quit, obey
from p2pgrid.errors import BadInput, LocalFault
from tests.api.toy_grid import blocking_on_toys

SHORT = Options(max_tokens=6)


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingGrid]:
    blocking_on_toys(monkeypatch)
    with connect_blocking() as grid:
        yield grid


def test_each_answer_knows_what_was_said_before(grid: BlockingGrid, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation("toy", "Be kind.")
    talk(grid, conversation, SHORT, iter(["hello", "and now?"]))
    first, second = conversation.answers
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    assert first.token_ids == grid.chat(asked, max_tokens=6).read().token_ids
    more = [*asked, {"role": "assistant", "content": first.text}, {"role": "user", "content": "and now?"}]
    assert second.token_ids == grid.chat(more, max_tokens=6).read().token_ids
    assert capsys.readouterr().out == printable(first.text) + "\n" + printable(second.text) + "\n"


def test_what_goes_wrong_is_one_line_and_the_talk_goes_on(
    grid: BlockingGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = Conversation("toy")
    talk(grid, conversation, SHORT, iter(["/frob", "word " * 100, "hello", "/stats", "/quit", "never said"]))
    told = capsys.readouterr().err
    assert "p2pgrid: there is no /frob: /help lists the commands\n" in told
    assert "the context holds 256" in told
    assert "1 answers, 6 tokens" in told
    assert [turn["content"] for turn in conversation.turns[::2]] == ["hello"]


def test_a_new_conversation_knows_nothing_and_shares_nothing() -> None:
    conversation = Conversation("toy")
    conversation.add("hello", "hi")
    scope = conversation.cache_scope
    assert obey("/new", conversation) == "a new conversation"
    assert conversation.messages("again") == [{"role": "user", "content": "again"}]
    assert conversation.cache_scope != scope
    obey("/system Be kind.", conversation)
    assert conversation.messages("again")[0] == {"role": "system", "content": "Be kind."}


def test_every_command_is_listed_and_does_what_it_says(tmp_path: Path) -> None:
    conversation = Conversation("toy", "Be kind.")
    conversation.add("hello", "hi")
    assert all(f"/{name}" in obey("/help", conversation) for name in COMMANDS)
    obey("/model other", conversation)
    assert conversation.model == "other"
    assert "no answer yet" in obey("/stats", conversation)
    with pytest.raises(Quit):
        obey("/quit", conversation)
    kept: Any = tmp_path / "talk.json"
    assert obey(f"/save {kept}", conversation) == f"3 messages are in {kept}"
    assert json.loads(kept.read_text())[1:] == conversation.turns
    text = tmp_path / "talk.txt"
    obey(f"/save {text}", conversation)
    assert text.read_text() == "system: Be kind.\n\nuser: hello\n\nassistant: hi\n"
    with pytest.raises(LocalFault, match="cannot write"):
        obey(f"/save {tmp_path}/nowhere/talk.txt", conversation)
    with pytest.raises(BadInput, match="say where"):
        obey("/save", conversation)


def test_a_line_that_ends_with_a_backslash_goes_on() -> None:
    assert list(joined(iter(["one\\", "two", "", "  ", "three", "four\\"]))) == ["one\ntwo", "three", "four"]


def test_nothing_that_a_stranger_says_moves_the_cursor() -> None:
    assert printable("a\x1b[2Jb\x07c\x9b1m\td\né") == "a[2Jbc1m\td\né"
