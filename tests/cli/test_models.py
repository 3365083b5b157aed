import json
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.cli import console
from p2pgrid.cli.app import run
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("P2PGRID_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "My Model (v1).gguf", layers=2)


class Said:
    """What a command said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    # The console keeps the stream that it was made with; here it must be the captured one, and wide.
    monkeypatch.setattr(console.stdout, "width", 200)

    def call(*argv: str) -> Said:
        status = run(["models", *argv])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call


def test_a_model_lives_from_import_to_removal(command: Any, file: Path, home: Path) -> None:
    imported = command("import", str(file), "--name", "tiny", "--json")
    assert imported.status == 0
    model = imported.json["model"]
    [listed] = command("list", "--json").json["models"]
    assert (listed["name"], listed["model"], listed["layers"], listed["problem"]) == ("tiny", model, 2, None)
    shown = command("show", "tiny", "--json").json
    assert (shown["model"], shown["vocab"], shown["kinds"]) == (model, 320, ["F32", "Q4_1"])
    assert Path(shown["checkpoint"]).read_bytes() == file.read_bytes()
    removed = command("remove", "tiny", "--json")
    assert removed.json["freed_bytes"] > file.stat().st_size
    assert command("list", "--json").json["models"] == []
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_without_json_results_are_on_stdout_and_what_goes_on_is_on_stderr(command: Any, file: Path) -> None:
    imported = command("import", str(file))
    assert "my-model-v1 is here" in imported.err
    assert "my-model-v1 is already here" in command("import", str(file)).err
    listed = command("list")
    assert "my-model-v1" in listed.out
    assert "p2pgrid models pull smollm2-135m-instruct" in listed.out
    assert "layers  2" in command("show", "my-model-v1").out
    assert "removed my-model-v1; this freed 0.1 MB" in command("remove", "my-model-v1").err
    assert imported.out == listed.err == ""


def test_what_can_be_pulled_is_listed_with_its_model_id(command: Any) -> None:
    listed = command("list", "--json")
    assert listed.json == {
        "models": [],
        "catalogue": {"smollm2-135m-instruct": "6d9386141fa5545126471da5c3bc0c2654c53f5456c752b93ee95d7ed718f547"},
    }
    assert listed.err == ""


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (("show", "nope"), 2, "no model named 'nope' on this machine; here: none; get one with"),
        (("remove", "nope"), 2, "no model named 'nope'"),
        (("pull", "nope"), 2, "the catalogue has no model 'nope'"),
        (("import", "none.gguf"), 1, "cannot read none.gguf"),
        (("import", "none.gguf", "--name", "No Name"), 2, "'No Name' is no name for a model"),
        (("pull",), 2, "NAME"),
    ],
)
def test_mistakes_are_one_line_and_a_status(command: Any, argv: tuple[str, ...], status: int, told: str) -> None:
    said = command(*argv)
    assert said.status == status
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("name", ["pull", "import", "list", "show", "remove"])
def test_help_shows_an_example(command: Any, name: str) -> None:
    said = command(name, "--help")
    assert said.status == 0
    assert f"Example: p2pgrid models {name}" in " ".join((said.out + said.err).split())
