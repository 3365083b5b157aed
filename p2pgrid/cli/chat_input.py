"""Where a chat reads what its user says: a prompt with history and completion, or the lines of a pipe."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from p2pgrid.storage.disk import disk_errors

CONTINUED = "\\"


def read_messages(history: Path | None, commands: Sequence[str]) -> Iterator[str]:
    """What the user says, message by message, until there is no more; `history` keeps it for the next time.

    A line that ends with a backslash goes on in the next one. Raises LocalFault when the history cannot be kept.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return joined(line.removesuffix("\n") for line in sys.stdin)
    return joined(_prompted(history, commands))


def joined(lines: Iterator[str]) -> Iterator[str]:
    """Messages from lines. Empty ones are left out."""
    held: list[str] = []
    for line in lines:
        held.append(line.removesuffix(CONTINUED))
        if not line.endswith(CONTINUED):
            if text := "\n".join(held).strip():
                yield text
            held = []
    if text := "\n".join(held).strip():
        yield text


def _prompted(history: Path | None, commands: Sequence[str]) -> Iterator[str]:
    session: PromptSession[str] = PromptSession(
        "> ",
        history=_kept(history),
        completer=WordCompleter([f"/{name}" for name in commands], sentence=True),
        complete_while_typing=False,
        key_bindings=_keys(),
        prompt_continuation="  ",
    )
    while True:
        try:
            yield session.prompt()
        except (EOFError, KeyboardInterrupt):
            return


def _kept(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    with disk_errors("keep the history in", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    return FileHistory(path)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    bind: Callable[..., Callable[[Callable[[KeyPressEvent], None]], object]] = keys.add

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def drop_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    bind("escape", "enter")(new_line)
    bind("c-c")(drop_or_leave)
    return keys
