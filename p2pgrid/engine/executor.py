"""The one place where computation meets threads, and its stand-in for simulations."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import TypeVar

import trio

from p2pgrid.core.batching import Kind
from p2pgrid.engine.stage import Stage
from p2pgrid.engine.turns import Turn, Turns
from p2pgrid.ids import ModelId

T = TypeVar("T")

AT_ONCE_S_MAX = 0.03
"""Work that takes no longer is not worth the way to another thread and back, 0.1 ms and more where the threads of the
runtime want every core (docs/decisions/0017). Nor does the network notice."""


class LaneExecutor:
    """One lane: work runs in a worker thread, one piece at a time, first come first served."""

    def __init__(self, turns: Turns | None = None) -> None:
        """`turns` are those of the stages on this machine, if there are several."""
        self._lane = trio.CapacityLimiter(1)
        self._turns = turns

    def standing(self, model: ModelId, stage: Stage) -> AbstractContextManager[None]:
        """See `engine.stage.Executor`."""
        if self._turns is None:
            return nullcontext()
        onward = stage.span.stop % stage.layers
        return self._turns.standing(f"{model} {stage.span.start}", f"{model} {onward}")

    def turn(self, kind: Kind) -> AbstractAsyncContextManager[Turn]:
        """See `engine.stage.Executor`."""
        return nullcontext(_no_turn()) if self._turns is None else self._turns.take(kind)

    def turn_at_once(self, expected_s: float | None) -> Turn | None:
        """See `engine.stage.Executor`."""
        if not self._may_run_at_once(expected_s):
            return None
        return _no_turn() if self._turns is None else self._turns.try_take()

    async def run(self, work: Callable[[], T], expected_s: float | None = None) -> T:
        """See `engine.stage.Executor`.

        Cancelled while it waits for the lane, the work never starts. Cancelled later, it keeps the lane and the
        caller until it has really stopped: a runtime cannot be interrupted, and its memory is still in use.
        """
        if self._may_run_at_once(expected_s):
            await trio.lowlevel.checkpoint_if_cancelled()
            return work()
        return await trio.to_thread.run_sync(work, limiter=self._lane)

    def _may_run_at_once(self, expected_s: float | None) -> bool:
        return expected_s is not None and expected_s <= AT_ONCE_S_MAX and not self._lane.borrowed_tokens


class InlineExecutor:
    """The same lane without threads: work takes `cost_s` of the run's clock, virtual or real, and then runs."""

    def __init__(self, cost_s: float | Callable[[], float] = 0.0) -> None:
        self._cost_s = cost_s
        self._lane = trio.StrictFIFOLock()

    def standing(self, model: ModelId, stage: Stage) -> AbstractContextManager[None]:
        """See `engine.stage.Executor`."""
        return nullcontext()

    def turn(self, kind: Kind) -> AbstractAsyncContextManager[Turn]:
        """See `engine.stage.Executor`."""
        return nullcontext(_no_turn())

    def turn_at_once(self, expected_s: float | None) -> Turn | None:
        """Never: work takes time here, and whoever waits for it must let time pass."""
        return None

    async def run(self, work: Callable[[], T], expected_s: float | None = None) -> T:
        """See `engine.stage.Executor`; cancellation is as in `LaneExecutor`."""
        async with self._lane:
            cost_s = self._cost_s() if callable(self._cost_s) else self._cost_s
            with trio.CancelScope(shield=True):
                await trio.sleep(cost_s)
            return work()


def _no_turn() -> Turn:
    return Turn(None, held=False)
