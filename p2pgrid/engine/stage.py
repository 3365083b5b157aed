"""The port to computation: a span of layers that can be stepped, and the one place where it runs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from p2pgrid.core.batching import Kind
from p2pgrid.engine.turns import Turn
from p2pgrid.ids import ModelId, Span
from p2pgrid.wire.tensors import Floats, Ints

T = TypeVar("T")

KvBlock = npt.NDArray[Any]
"""Keys and values of some positions of one row, all layers of the span: a copy, whose shape is the stage's own."""


class Stage(Protocol):
    """A span of a model's layers with KV rows for `rows` sessions of up to `context_max` positions.

    Not thread-safe: everything that computes goes through one `Executor` lane.
    """

    span: Span
    layers: int
    """Of the whole model."""
    hidden: int
    vocab: int
    rows: int
    context_max: int
    kv_positions: int
    """KV budget: positions that all rows together may hold."""
    position_bytes: int
    """Memory of one position of one row."""

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        """Set the row's length to `position`, append `n = len(tokens)` positions, run the span over them.

        `tokens` is `[n]` int32; `hidden` is None for the stage with layer 0, else `[n, hidden]` float32.
        Returns hidden states `[n, hidden]`, or, at the last stage, the logits after the last `logits`
        positions `[logits, vocab]` (0 <= logits <= n). The array is the caller's own.

        The caller keeps `position + n <= context_max` and has filled the row up to `position`.
        Raises LocalFault when the runtime fails.
        """

    def step_rows(self, rows: Sequence[int], positions: Sequence[int], tokens: Ints, hidden: Floats | None) -> Floats:
        """One position of each of `b` different rows in one go; for each row to the bit what `step` computes.

        `tokens` is `[b]`; `hidden` is None for the stage with layer 0, else `[b, hidden]`. Returns hidden states
        `[b, hidden]`, or, at the last stage, the logits after each `[b, vocab]`. Otherwise as `step`.
        """

    def save(self, row: int, start: int, stop: int) -> KvBlock:
        """A copy of what the row holds for positions `[start, stop)`, which are filled. Its `nbytes` is its cost."""

    def load(self, row: int, start: int, block: KvBlock) -> None:
        """Put positions that a stage of the same span and model saved back, from `start` on.

        The caller has filled the row up to `start`.
        """

    def unpack(self, data: bytes, positions: int) -> KvBlock:
        """What `save` gave for so many positions, from its bytes. Raises PeerMisbehaved for another size."""

    def release(self, row: int) -> None:
        """Give the row's memory back to the machine; its contents are lost."""

    def close(self) -> None:
        """Give everything back. Idempotent."""


class Executor(Protocol):
    """Runs work in a lane of its own, one piece at a time, first come first served."""

    async def run(self, work: Callable[[], T], expected_s: float | None = None) -> T:
        """The result of `work()`. A cancelled caller still waits until the work has really stopped.

        Work that is `expected_s` to be over soon may run at once, in the caller's own thread.
        """

    def standing(self, model: ModelId, stage: Stage) -> AbstractContextManager[None]:
        """While this lasts the work is that of this stage of `model`. Raises LocalFault."""

    def turn(self, kind: Kind) -> AbstractAsyncContextManager[Turn]:
        """Our turn to compute, where stages of one machine take turns, with work of that `kind` waiting.

        Whoever chooses what to run does so in it.
        """

    def turn_at_once(self, expected_s: float | None) -> Turn | None:
        """The same without waiting, for work of `expected_s` that the caller runs itself, right now, on the event loop.

        The caller ends it. None when somebody else computes, or the work takes too long for that.
        """
