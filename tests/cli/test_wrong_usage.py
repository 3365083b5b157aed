"""Wrong input: one clear line on stderr, the right exit status, and nothing on stdout."""

import socket
from pathlib import Path

import pytest

from p2pgrid.cli.app import run
from p2pgrid.cli.values import parse_layers, parse_size
from p2pgrid.errors import BadInput
from p2pgrid.ids import Span
from tests.real_model import real_store

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    status = run(list(command))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("p2pgrid: ")
    assert err.count("\n") == 1, err
    return status, err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["generate", "--frob"], "--frob"),
        (["generate"], "prompt"),
        (["fly"], "fly"),
        (["generate", "--local", "--model", "nope", "hi"], "no model named 'nope'"),
        (["swarm", "--model", "nope", "--prompt", "hi"], "no model named 'nope'"),
        (["swarm"], "nothing to do"),
        (["node", "--layers", "20:10"], "--layers 20:10"),
        (["node", "--layers", "10:10"], "--layers 10:10"),
        (["node", "--layers", "some"], "START:STOP"),
        (["node", "--memory", "lots"], "500MB"),
        (["node", "--span-max", "0"], "at least one layer"),
        (["generate", "--temperature", "-1", "hi"], "--temperature"),
        (["generate", "--top-p", "0", "hi"], "--top-p"),
        (["generate", "--top-k", "-1", "hi"], "--top-k"),
        (["generate", "--presence-penalty", "2.5", "hi"], "--presence-penalty"),
        (["generate", "--frequency-penalty", "-3", "hi"], "--frequency-penalty"),
        (["generate", "--json-schema", "no-such-file.json", "hi"], "no-such-file.json"),
        (["generate", "--seed", "-1", "hi"], "--seed"),
        (["generate", "--max-tokens", "many", "hi"], "many"),
        (["score", "--local", "--text-file", "/does/not/exist"], "/does/not/exist"),
        (["generate", "--bootstrap", "nonsense", "hi"], "nonsense"),
        (["generate", "--bootstrap", "/ip4/127.0.0.1/tcp/1", "hi"], "/p2p/"),
        (["sim", "--nodes", "0"], "--nodes 0"),
        (["chat", "--temperature", "-1"], "--temperature"),
        (["chat", "--local", "--model", "nope"], "no model named 'nope'"),
        (["chat", "--bootstrap", "nonsense"], "nonsense"),
        (["top", "--every", "0"], "--every 0"),
        (["top", "--model", "nope"], "no model named 'nope'"),
        (["top", "--bootstrap", "nonsense"], "nonsense"),
        (["models", "show", "nope"], "nope"),
        (["serve", "--cors", "*"], "--cors *"),
        (["serve", "--cors", "https://chat.example/"], "without a path"),
        (["serve", "--cors", "Chat.example"], "https://chat.example"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(capsys, *command)
    assert status == 2
    assert said in err


def test_a_bootstrap_peer_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "--bootstrap", NOBODY, "hi"], ["status", "--bootstrap", NOBODY]):
        status, err = refused(capsys, *command)
        assert status == 1
        assert "/ip4/127.0.0.1/tcp/1" in err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, err = refused(capsys, "bootstrap", "--ephemeral", "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert status == 1
    assert f"/tcp/{port}" in err
    assert "in use" in err


@pytest.mark.model
def test_what_does_not_fit_the_real_model_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real_store()
    text = tmp_path / "long.txt"
    text.write_text("word " * 9000)
    for command, said in (
        (["generate", "--local", text.read_text()], "the context holds 8192"),
        (["swarm", "--prompt", text.read_text()], "the context holds 8192"),
        (["score", "--local", "--text-file", str(text)], "the context holds 8192"),
        (["swarm", "--nodes", "31", "--prompt", "hi"], "--nodes 31"),
        (["node", "--layers", "20:40"], "layers 0:30"),
        (["node", "--memory", "10MB"], "do not fit"),
    ):
        status, err = refused(capsys, *command)
        assert status == 2
        assert said in err


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("4096", "500MB", "2GiB", "1.5g", "3 k")] == [
        4096,
        500_000_000,
        2 * 2**30,
        1_500_000_000,
        3000,
    ]
    for wrong in ("", "MB", "-1GB", "1PB", "2ib"):
        with pytest.raises(BadInput):
            parse_size(wrong)


def test_spans_are_read_as_people_write_them() -> None:
    assert parse_layers("auto") is None
    assert parse_layers("10:20") == Span(10, 20)
    for wrong in ("", "10", "10-20", "20:10", "1:1", "0:99999", "-1:5"):
        with pytest.raises(BadInput):
            parse_layers(wrong)
