"""What a doctor says of the network, and what the command says in the end."""

import json
import socket
from pathlib import Path

import pytest

from p2pgrid.checkup.network import compared, listening, reachable, signed_ahead_s
from p2pgrid.cli.app import run

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"


def test_a_port_in_use_is_a_problem() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (found,) = listening([f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"])
    assert found.verdict == "problem"
    assert "in use" in found.says
    assert "--listen" in found.remedy


def test_an_address_that_is_none_is_a_problem() -> None:
    (found,) = listening(["nonsense"])
    assert (found.verdict, "nonsense" in found.says) == ("problem", True)


def test_a_free_port_is_all_right_and_loopback_is_told() -> None:
    port, address = listening(["/ip4/127.0.0.1/tcp/0"])
    assert port.verdict == "ok"
    assert (address.verdict, "only programs on this machine" in address.says) == ("warning", True)


@pytest.mark.parametrize(
    ("hosts", "verdict", "told"),
    [
        (["10.0.0.7", "8.8.8.8"], "ok", "public"),
        (["10.0.0.7"], "warning", "beyond the router"),
        (["100.64.0.9"], "warning", "beyond the router"),
        (["127.0.0.1", "::1"], "warning", "only programs on this machine"),
    ],
)
def test_who_could_dial_is_said(hosts: list[str], verdict: str, told: str) -> None:
    found = reachable(hosts)
    assert (found.verdict, told in found.says) == (verdict, True)


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "told"),
    [
        ([], "ok", "no node"),
        ([0.0, 0.3, -4.0], "ok", "agrees with 3 nodes"),
        ([20.0], "warning", "20 s behind"),
        ([-400.0, -400.0, 0.0], "problem", "400 s ahead of"),
    ],
)
def test_clocks_that_are_apart_are_told(ahead_s: list[float], verdict: str, told: str) -> None:
    found = compared(ahead_s)
    assert (found.verdict, told in found.says) == (verdict, True)


def test_the_age_of_an_advert_is_not_taken_for_a_wrong_clock() -> None:
    assert signed_ahead_s(100.0, 100.0) == 0
    assert signed_ahead_s(86.0, 100.0) == 0
    assert signed_ahead_s(60.0, 100.0) == -25
    assert signed_ahead_s(140.0, 100.0) == 40


def test_the_command_ends_with_1_when_there_is_a_problem_and_says_all_in_one_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("P2PGRID_HOME", str(tmp_path))
    assert run(["doctor", "--quick", "--bootstrap", NOBODY, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "problem"
    (peer,) = [one for one in document["findings"] if one["about"] == "bootstrap peer"]
    assert peer["verdict"] == "problem"
    assert "/ip4/127.0.0.1/tcp/1" in peer["says"]
    assert all(one["remedy"] for one in document["findings"] if one["verdict"] != "ok")


def test_without_a_problem_it_ends_with_0_and_each_line_has_its_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("P2PGRID_HOME", str(tmp_path))
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "warning bootstrap peer: none is known" in shown
    assert "→ name one with --bootstrap ADDRESS" in shown
