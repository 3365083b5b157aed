"""Steps that were scheduled together, run together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from p2pgrid.engine.run_step import RowStep, StepOut, run_rows, run_step
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.engine.turns import Turn
from p2pgrid.errors import LocalFault
from p2pgrid.services.worker.seat import Queued, Seat
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.tensors import Floats, Ints


@dataclass(frozen=True)
class Ready:
    """A step that was checked and is about to be run."""

    seat: Seat
    queued: Queued
    tokens: Ints
    hidden: Floats | None
    targets: Ints


Results = Sequence[StepOut | LocalFault]
"""What came of each step of a batch."""
Outcome = tuple[Results, float]
"""That, and the seconds it took."""


def runs_alone(batch: Sequence[Ready]) -> bool:
    """Whether the batch is a step that can have no others beside it: of several positions, or to be scored."""
    return len(batch) == 1 and (len(batch[0].tokens) > 1 or batch[0].queued.step.want == "scores")


class BatchRunner:
    """Runs batches, each of one step that runs alone or of one position each of several rows."""

    def __init__(self, stage: Stage, executor: Executor, tracer: Tracer) -> None:
        self.executor = executor
        self._stage = stage
        self._tracer = tracer
        self._expected_s: dict[int, float] = {}
        """Positions in a batch → how long one like it took last."""

    def turn_at_once(self, rows: int) -> Turn | None:
        """For a batch of so many decode steps; see `engine.stage.Executor`."""
        return self.executor.turn_at_once(self._expected_s.get(rows))

    async def run(self, batch: Sequence[Ready]) -> Outcome:
        """In the executor's lane."""
        began_at = self._begin(batch)
        results: Results
        try:
            results = await self.executor.run(self._work_of(batch), self._expected_s.get(_positions(batch)))
        except LocalFault as error:
            results = [error] * len(batch)
        return self._outcome(batch, results, began_at)

    def run_here(self, batch: Sequence[Ready]) -> Outcome:
        """In the caller's own turn, after `turn_at_once`."""
        began_at = self._begin(batch)
        results: Results
        try:
            results = self._work_of(batch)()
        except LocalFault as error:
            results = [error] * len(batch)
        return self._outcome(batch, results, began_at)

    def _begin(self, batch: Sequence[Ready]) -> float:
        self._note("started", batch)
        return trio.current_time()

    def _outcome(self, batch: Sequence[Ready], results: Results, began_at: float) -> Outcome:
        took_s = self._expected_s[_positions(batch)] = trio.current_time() - began_at
        self._note("computed", batch)
        return results, took_s

    def _work_of(self, batch: Sequence[Ready]) -> Callable[[], Results]:
        # A step that only fills a row needs no logits, which at the last stage are half of the work.
        if runs_alone(batch) or (len(batch) == 1 and batch[0].queued.step.want == "nothing"):
            return partial(self._run_alone, batch[0])
        rows = [
            RowStep(
                ready.seat.row,
                ready.queued.step.position,
                int(ready.tokens[0]),
                None if ready.hidden is None else ready.hidden[0],
                "token" if ready.queued.step.want == "token" else "nothing",
                ready.seat.drawer,
            )
            for ready in batch
        ]
        return partial(run_rows, self._stage, rows)

    def _run_alone(self, ready: Ready) -> Results:
        step = ready.queued.step
        return [
            run_step(
                self._stage,
                ready.seat.row,
                step.position,
                ready.tokens,
                ready.hidden,
                want=step.want,
                targets=ready.targets,
                drawer=ready.seat.drawer,
            )
        ]

    def _note(self, event: str, batch: Sequence[Ready]) -> None:
        if self._tracer is NO_TRACE:
            return
        for ready in batch:
            self._tracer.note(event, ready.queued.step.session, ready.queued.step.position)


def _positions(batch: Sequence[Ready]) -> int:
    return sum(len(ready.tokens) for ready in batch)
