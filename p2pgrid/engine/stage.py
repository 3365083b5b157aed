"""The port to computation: a span of layers that can be stepped, and the one place where it runs."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from p2pgrid.ids import Span
from p2pgrid.wire.tensors import Floats, Ints

T = TypeVar("T")


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

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        """Set the row's length to `position`, append `n = len(tokens)` positions, run the span over them.

        `tokens` is `[n]` int32; `hidden` is None for the stage with layer 0, else `[n, hidden]` float32.
        Returns hidden states `[n, hidden]`, or, at the last stage, the logits after the last `logits`
        positions `[logits, vocab]` (0 <= logits <= n). The array is the caller's own.

        The caller keeps `position + n <= context_max` and has filled the row up to `position`.
        Raises LocalFault when the runtime fails.
        """

    def release(self, row: int) -> None:
        """Give the row's memory back to the machine; its contents are lost."""

    def close(self) -> None:
        """Give everything back. Idempotent."""


class Executor(Protocol):
    """Runs work in a lane of its own, one piece at a time, first come first served."""

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work()`. A cancelled caller still waits until the work has really stopped."""
