"""Stages on one machine compute in turns: two at once would wait for each other's cores inside every operation.

Whoever waits for its turn finds more steps to run together when it comes. docs/decisions/0017 weighs it. A prefill step
is followed by a few turns of decode steps, as long as both wait somewhere on the machine or the decode steps are on
their way from one stage to the next: prompts that are read at three stages at once would take most turns, and answers
stutter.

The turn is a lock on a file, which ends with its holder however that ends. A holder that is stopped in the middle is
waited for `PATIENCE_S`, and then for a while no more.
"""

import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import get_args

import trio

from p2pgrid.core.batching import Kind
from p2pgrid.core.rotation import Rotation
from p2pgrid.errors import LocalFault

PATIENCE_S = 0.5
"""Longer than any step takes."""
DISTRUST_S = 5.0
LOOK_S = 0.005
"""A waiter looks by itself so often, should the news of a free turn be lost."""
STEP_ASIDE_S = 0.0005


_PACKED = struct.Struct("<BQddQI")
"""A `Rotation`, as it lies in the file that is the turn."""


class _Members:
    """Those of all processes who are here: each holds a shared lock on a file, which ends with it however it ends."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)

    def enter(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def leave(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def is_empty(self) -> bool:
        """Asked by one who is not."""
        free = _locks(self._file, fcntl.LOCK_EX)
        if free:
            self.leave()
        return free

    def close(self) -> None:
        os.close(self._file)


class _Place(_Members):
    """The processes that serve one stage, which goes by a number."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.number = zlib.crc32(stage.encode()) or 1
        super().__init__(folder / f"stage-{self.number:08x}")


class _Line(_Members):
    """Those who wait with work of one kind, and a pipe by which they hear."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder / f"{name}-queue")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(folder / f"{name}-news", 0o600)
        self._news = os.open(folder / f"{name}-news", os.O_RDWR | os.O_NONBLOCK)

    def tell(self) -> None:
        """One of those who wait that the turn is free."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._news, b".")

    async def hear(self) -> None:
        with trio.move_on_after(LOOK_S):
            await trio.lowlevel.wait_readable(self._news)
            with contextlib.suppress(BlockingIOError):
                os.read(self._news, 64)

    def close(self) -> None:
        super().close()
        os.close(self._news)


class Turns:
    """This process's part in the turns that are taken in `folder`, which all stages of the machine name alike."""

    def __init__(self, folder: Path) -> None:
        """Raises LocalFault when the folder cannot be used."""
        try:
            self._turn = os.open(folder / "turn", os.O_RDWR | os.O_CREAT, 0o600)
            self._lines: dict[Kind, _Line] = {kind: _Line(folder, kind) for kind in get_args(Kind)}
        except OSError as error:
            raise LocalFault(f"cannot take turns in {folder}: {error.strerror}") from error
        self._folder = folder
        self._here = 0
        self._onward: _Place | None = None
        self._step_aside = False
        self._distrust_until = float("-inf")

    @asynccontextmanager
    async def take(self, kind: Kind = "decode") -> "AsyncIterator[Turn]":
        """Our turn, for as long as the context lasts, or until it ends itself."""
        held = await self._acquire(kind)
        turn = Turn(self, held=held, prefill_is_due=not held or self._rotation().prefill_is_due)
        try:
            yield turn
        finally:
            if turn.held:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()  # results that a writer of ours has yet to write
                turn.end()

    @contextmanager
    def standing(self, here: str, onward: str) -> Iterator[None]:
        """While this lasts we are the stage `here`, and our results go on to `onward`. Raises LocalFault."""
        with contextlib.ExitStack() as places:
            try:
                own, next_one = (
                    places.enter_context(contextlib.closing(_Place(self._folder, name))) for name in (here, onward)
                )
            except OSError as error:
                raise LocalFault(f"cannot take turns in {self._folder}: {error.strerror}") from error
            own.enter()
            self._here, self._onward = own.number, next_one
            try:
                yield
            finally:
                self._here, self._onward = 0, None

    def try_take(self) -> "Turn | None":
        """Our turn, which the caller ends; None when we would have to wait for it."""
        if self._step_aside or not self._locks_for("decode"):
            return None
        return Turn(self, held=True)

    def close(self) -> None:
        os.close(self._turn)
        for line in self._lines.values():
            line.close()

    async def _acquire(self, kind: Kind) -> bool:
        """Whether the turn is ours; False when its holder seems to be stuck, and we go on beside it."""
        if self._step_aside:  # whoever waited goes first
            self._step_aside = False
            await trio.sleep(STEP_ASIDE_S)
        since = self._rotation().turns
        if self._locks_for(kind, since):
            return True
        if trio.current_time() < self._distrust_until:
            return False
        line = self._lines[kind]
        line.enter()
        try:
            with trio.move_on_after(PATIENCE_S):
                while not self._locks_for(kind, since):
                    await line.hear()
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()  # what the holder before us sent may be read now, and join
                return True
        finally:
            line.leave()
        self._distrust_until = trio.current_time() + DISTRUST_S
        return False

    def is_awaited(self) -> bool:
        """Whether somebody waits for our turn to end."""
        return not all(line.is_empty() for line in self._lines.values())

    def _locks_for(self, kind: Kind, since: int | None = None) -> bool:
        """Whether the turn is ours now, for work that waits since so many turns of decode steps had been; None = it has
        come just now.
        """
        if not _locks(self._turn, fcntl.LOCK_EX):
            return False
        rotation, now = self._rotation(), time.monotonic()
        if kind == "prefill":
            held_back = rotation.holds_prefill_back(not self._lines["decode"].is_empty(), now)
        else:
            held_back = rotation.holds_decodes_back(self._here, rotation.turns if since is None else since, now)
        if held_back:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        return not held_back

    def _rotation(self) -> Rotation:
        """As it stands, for the holder of the turn; anybody else may see what was just before."""
        packed = os.pread(self._turn, _PACKED.size, 0)
        return Rotation(*_PACKED.unpack(packed)) if len(packed) == _PACKED.size else Rotation()

    def release(self, kind: Kind, positions: int, took_s: float) -> None:
        """Of `Turn`: let the next one begin, with the kind of work that is due if anybody has such."""
        onward = self._onward
        number = 0 if onward is None or onward.number == self._here or onward.is_empty() else onward.number
        rotation = self._rotation().after(kind, positions, took_s, time.monotonic(), number)
        os.pwrite(self._turn, _PACKED.pack(*rotation), 0)
        due: Kind = "prefill" if rotation.prefill_is_due else "decode"
        by_turn = sorted(self._lines.items(), key=lambda item: item[0] != due)
        following = next((line for _, line in by_turn if not line.is_empty()), None)
        self._step_aside = following is not None
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        if following is not None:
            following.tell()


class Turn:
    """A turn to compute, unless it is not `held`: then nobody waits for it."""

    def __init__(self, turns: Turns | None, *, held: bool, prefill_is_due: bool = True) -> None:
        """`prefill_is_due`: the machine's answers have gone on since the last prefill step."""
        self.prefill_is_due = prefill_is_due
        self._began_at = time.monotonic()
        self._turns = turns
        self._kind: Kind = "decode"
        self._positions = 0
        self.held = held

    def computed(self, kind: Kind, positions: int) -> None:
        """The computing is over. The turn ends now, so that whoever gets the results need not wait for it; but not
        after decode steps while somebody waits whose next ones ours may join: then it ends once they were sent.
        """
        self._kind, self._positions = kind, positions
        if self.held and self._turns is not None and not (kind == "decode" and self._turns.is_awaited()):
            self.end()

    def end(self) -> None:
        """Idempotent."""
        if self.held and self._turns is not None:
            self._turns.release(self._kind, self._positions, time.monotonic() - self._began_at)
        self.held = False


@contextmanager
def open_turns(folder: Path | None) -> Iterator[Turns | None]:
    """Our part in the turns of `folder`; None without one. Raises LocalFault."""
    if folder is None:
        yield None
        return
    with contextlib.closing(Turns(folder)) as turns:
        yield turns


def _locks(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
