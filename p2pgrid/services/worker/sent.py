"""What a stage sent downstream, kept while the session lives: whoever takes the next stage's place will need it.

It is kept as it was packed, so that it has the same bits when it is sent again. What is too much for memory goes to
files that have no name, and with them when the process ends.
"""

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import structlog

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.messages import Step

log = structlog.get_logger()

MEMORY_BYTES_MAX = 64 * 1024 * 1024
"""Of all sessions of a stage together."""
DISK_BYTES_MAX = 4 * 1024 * 1024 * 1024
STEP_BYTES = 256
"""What a step takes in memory beside its hidden states, about."""


class SentLog:
    """The steps that all sessions of one stage sent, within the limits. Only what is over them costs more than a list.

    What finds no room on the disk either can not be replayed: somebody before this stage has to.
    """

    def __init__(self, memory_bytes_max: int = MEMORY_BYTES_MAX, disk_bytes_max: int = DISK_BYTES_MAX) -> None:
        self.memory_bytes = 0
        self.disk_bytes = 0
        self._memory_bytes_max = memory_bytes_max
        self._disk_bytes_max = disk_bytes_max
        self._sessions: dict[SentSteps, None] = {}

    def open(self) -> "SentSteps":
        """For a new session, whose end calls `close`."""
        steps = SentSteps(self)
        self._sessions[steps] = None
        return steps

    def forget(self, steps: "SentSteps") -> None:
        self._sessions.pop(steps, None)

    def grew(self, nbytes: int) -> None:
        self.memory_bytes += nbytes
        while self.memory_bytes > self._memory_bytes_max:
            max(self._sessions, key=lambda each: each.memory_bytes).spill()

    def has_disk_for(self, nbytes: int) -> bool:
        return self.disk_bytes + nbytes <= self._disk_bytes_max


@dataclass(frozen=True)
class _Spilled:
    """A step in the file."""

    position: int
    offset: int
    nbytes: int


class SentSteps:
    """Of one session, in order of their positions."""

    def __init__(self, shared: SentLog) -> None:
        self.memory_bytes = 0
        self._shared = shared
        self._steps: list[Step | _Spilled] = []
        self._first = 0
        """Those before it are lost."""
        self._resident = 0
        """Those from here on are in memory."""
        self._file: BinaryIO | None = None
        self._file_end = 0
        self._loss_logged = False

    @property
    def start(self) -> int | None:
        """From which position on everything can be sent again; None when nothing can."""
        return self._steps[self._first].position if self._first < len(self._steps) else None

    def put(self, step: Step) -> None:
        """A step was computed: what stood at its position and behind it is void."""
        if self._steps and self._steps[-1].position >= step.position:
            self._truncate(step.position)
        self._steps.append(step)
        nbytes = _bytes_of(step)
        self.memory_bytes += nbytes
        self._shared.grew(nbytes)

    def between(self, start: int, stop: int) -> Iterator[Step]:
        """The steps that cover positions `[start, stop)`; fewer when some are lost meanwhile."""
        at = bisect_right(self._steps, start, key=lambda each: each.position) - 1
        while max(at, 0) < len(self._steps) and self._steps[max(at, 0)].position < stop:
            at = max(at, 0)
            step = self._steps[at]
            found = step if isinstance(step, Step) else self._read(at, step)
            if at < self._first or found is None:
                return
            yield found
            at += 1

    def spill(self) -> None:
        """Move the oldest step that is in memory to the file."""
        step = self._steps[self._resident]
        assert isinstance(step, Step)
        payload = encode(step)
        self._settle(-_bytes_of(step))
        self._steps[self._resident] = _Spilled(step.position, self._file_end, len(payload))
        self._resident += 1
        try:
            if not self._shared.has_disk_for(len(payload)):
                raise OSError("the limit for steps on the disk is reached")
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the session
            if os.pwrite(self._file.fileno(), payload, self._file_end) < len(payload):
                raise OSError("the disk is full")
        except OSError as error:
            if not self._loss_logged:  # once: it would be said again for every step that follows
                log.warning("steps that were sent cannot be kept", error=str(error))
                self._loss_logged = True
            self._first = self._resident  # what is before it is of no use without it
            return
        self._move_end(self._file_end + len(payload))

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._settle(-self.memory_bytes)
        self._move_end(0)
        self._steps.clear()
        self._first = self._resident = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        self._shared.forget(self)

    def _truncate(self, position: int) -> None:
        while self._steps and self._steps[-1].position >= position:
            step = self._steps.pop()
            if isinstance(step, Step):
                self._settle(-_bytes_of(step))
            elif step.offset < self._file_end:
                self._move_end(step.offset)
        self._first = min(self._first, len(self._steps))
        self._resident = min(self._resident, len(self._steps))

    def _read(self, at: int, place: _Spilled) -> Step | None:
        try:
            if self._file is None or at < self._first:
                return None
            payload = os.pread(self._file.fileno(), place.nbytes, place.offset)
            step: Step = decode(payload, Step)
        except (OSError, PeerMisbehaved) as error:
            log.warning("steps that were sent cannot be read again", error=str(error))
            self._first = at + 1
            return None
        return step

    def _settle(self, nbytes: int) -> None:
        self.memory_bytes += nbytes
        self._shared.memory_bytes += nbytes

    def _move_end(self, offset: int) -> None:
        self._shared.disk_bytes += offset - self._file_end
        self._file_end = offset


def _bytes_of(step: Step) -> int:
    return len(step.hidden) + len(step.tokens) + STEP_BYTES
