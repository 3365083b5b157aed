"""Writes docs/commands.md anew: `python -m tests.cli.commands_page`."""

import io
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App
from rich.console import Console

from p2pgrid.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
WIDTH = 120
HEAD = """# Commands

What `--help` says of each command. Written by `python -m tests.cli.commands_page`; a test compares the two.
"""


def commands(group: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of commands, by the words that name it."""
    for name in group:
        if not name.startswith("-"):
            yield (*path, name)
            yield from commands(group[name], (*path, name))


def help_of(path: tuple[str, ...]) -> str:
    """What `--help` prints, as wide as the page and without colours."""
    text = io.StringIO()
    app.help_print(list(path), console=Console(file=text, width=WIDTH, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def page() -> str:
    parts = [HEAD, f"```\n{help_of(())}\n```\n"]
    parts += [f"## p2pgrid {' '.join(path)}\n\n```\n{help_of(path)}\n```\n" for path in commands(app)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
