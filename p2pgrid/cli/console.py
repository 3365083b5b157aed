"""How commands speak: results on stdout, with `--json` as one document; everything else on stderr."""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

Advance = Callable[[int, int], None]
"""Report progress: `(done, total)` bytes or steps; total 0 = not known."""


def print_json(document: Any) -> None:
    """The one JSON document of a command, on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    sys.stdout.flush()


def show(line: str) -> None:
    """One line of a command's result. No markup, so that nothing in it can be mistaken for some."""
    stdout.print(line, markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """What strangers say, without what a terminal would obey: control characters, but for new lines and tabs."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def say(line: str) -> None:
    """One line about what goes on."""
    stderr.print(line, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """A bar on stderr for anything that may take over two seconds; nothing where stderr is no terminal."""
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if in_bytes:
        columns.insert(3, DownloadColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield advance
