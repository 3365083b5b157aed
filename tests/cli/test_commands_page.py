"""The page of commands, and completion in a shell: both come from the commands themselves."""

import subprocess

import pytest

from p2pgrid.cli.app import run
from tests.cli.commands_page import PAGE, page


def test_the_page_of_commands_says_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.cli.commands_page"


def test_bash_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        ask = f"{typed}; _p2pgrid; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        shown = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return shown.stdout.split()

    assert completed("p2pgrid", "doc") == ["doctor"]
    assert completed("p2pgrid", "models", "pu") == ["pull"]
    assert "--bootstrap" in completed("p2pgrid", "chat", "--b")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "p2pgrid" in capsys.readouterr().out


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
