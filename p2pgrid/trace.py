"""What happened to a step, when: events of one process, on a clock that all processes of a machine share."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from p2pgrid.errors import LocalFault


class Tracer(Protocol):
    """Takes the events of steps.

    Links note `read`, `decoded`, `delivered`, `queued` and `written`; stages `started` and `computed`.
    """

    def note(self, event: str, session: str, position: int, at_s: float | None = None) -> None:
        """`event` happened to the step of `session` at `position`; `at_s` is of `trace.now`, None = just now."""


class _NoTracer:
    def note(self, event: str, session: str, position: int, at_s: float | None = None) -> None:
        """Forget it."""


NO_TRACE: Tracer = _NoTracer()
"""Keeps nothing. Whoever has several events to note compares with it once, and notes none."""

now = time.monotonic
"""Seconds since the machine started, the same in all of its processes (trio's own clock has an offset in each)."""


class FileTracer:
    """Appends one JSON object an event to `sink`: `event`, `session`, `position`, `at_s`."""

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink

    def note(self, event: str, session: str, position: int, at_s: float | None = None) -> None:
        at_s = now() if at_s is None else at_s
        line = {"event": event, "session": session, "position": position, "at_s": round(at_s, 7)}
        self._sink.write(json.dumps(line) + "\n")


@contextmanager
def open_trace(path: Path | None) -> Iterator[Tracer]:
    """A tracer that writes a new file, all of it there when this ends; NO_TRACE without a path.

    Raises LocalFault when the file cannot be written.
    """
    if path is None:
        yield NO_TRACE
        return
    try:
        sink = path.open("w", encoding="utf-8")
    except OSError as error:
        raise LocalFault(f"cannot write the trace {path}: {error.strerror}") from error
    with sink:
        yield FileTracer(sink)
