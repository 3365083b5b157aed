"""API keys as a user makes, sees and revokes them, and a gateway that runs meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli.app import run
from p2pgrid.gateway.access import Access
from p2pgrid.gateway.keys import FILE_NAME, KeyStore
from p2pgrid.storage.paths import HOME_VARIABLE
from tests.gateway.kit import door
from tests.swarm_kit import wall


def user_of(home: Path, *command: str) -> Any:
    """What `p2pgrid keys` prints for a user whose home is empty before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("P2PGRID_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "p2pgrid", "keys", *command, "--json"],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


async def test_a_key_opens_a_running_gateway_until_it_is_revoked(tmp_path: Path, autojump_clock: object) -> None:
    store = KeyStore(tmp_path / ".local/share/p2pgrid")
    async with door(0, access=Access(wall, store)) as here:
        assert (await here.get("/v1/models")).status == 200, "no key was made yet"
        made = user_of(tmp_path, "add", "alice", "--requests-per-min", "60", "--scope", "models")
        header = {"authorization": f"Bearer {made['key']}"}
        assert (await here.get("/v1/models")).status == 401
        assert (await here.get("/v1/models", **header)).status == 200
        assert (await here.get("/metrics", **header)).status == 403
        assert user_of(tmp_path, "revoke", made["id"]) == {"revoked": made["id"]}
        assert (await here.get("/v1/models", **header)).status == 401


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return tmp_path


def test_no_list_and_no_file_has_the_key_in_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "add", "[red]alice[/red]", "--tokens-per-day", "1000"]) == 0
    shown = capsys.readouterr()
    key, key_id = shown.out.strip(), shown.out.split("-")[1]
    secret = key.removeprefix(f"p2p-{key_id}-")
    assert len(secret) == 32
    assert secret not in shown.err
    assert secret not in (home / FILE_NAME).read_text()
    for options in ([], ["--json"]):
        assert run(["keys", "list", *options]) == 0
        listed = capsys.readouterr().out
        assert secret not in listed
        assert key_id in listed
        assert "[red]" in listed
    (record,) = json.loads(listed)["keys"]
    assert (record["id"], record["tokens_per_day"], record["requests_per_min"]) == (key_id, 1000, 0)
    assert not {"key", "salt", "digest"} & record.keys()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["revoke", "alice"], "no key has the id alice"),
        (["revoke", "0123456789"], "keys list"),
        (["revoke"], "--key-id"),
        (["add", ""], "1 to 64 letters"),
        (["add", "x" * 65], "1 to 64 letters"),
        (["add", "two\nlines"], "on one line"),
        (["add", "\x1b[31mred"], "on one line"),
        (["add", "bob", "--requests-per-min", "-1"], "--requests-per-min"),
        (["add", "bob", "--tokens-per-day=-1"], "--tokens-per-day"),
        (["add", "bob", "--tokens-per-day", "many"], "--tokens-per-day"),
        (["add", "bob", "--scope", "root"], "--scope"),
        (["add"], "--name"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    command: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", "add", "alice"]) == 0
    before = (home / FILE_NAME).read_bytes()
    capsys.readouterr()
    assert run(["keys", *command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("p2pgrid: ")
    assert err.count("\n") == 1
    assert said in err
    assert (home / FILE_NAME).read_bytes() == before


def test_a_damaged_file_is_the_machines_fault(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / FILE_NAME).write_text("{")
    (home / FILE_NAME).chmod(0o600)
    for command in (["list"], ["add", "bob"], ["revoke", "0123456789"]):
        assert run(["keys", *command]) == 1
        assert "move it away" in capsys.readouterr().err
