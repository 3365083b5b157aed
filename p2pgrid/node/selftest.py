"""A node says that it serves only after a canary answer went through its own stage."""

import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import trio

from p2pgrid.core.batching import BATCH_ROWS_MAX
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault
from p2pgrid.wire.tensors import Floats

PREFILL = 8
DECODES = 6
BATCHES = 2


@dataclass(frozen=True)
class Proof:
    """A stage that passed, and how quick it is."""

    step_ms: float
    """Of a one-token step."""
    tokens_per_s_max: float
    """Decode steps a second when its batches are full."""


async def prove_stage(stage: Stage, executor: Executor) -> Proof:
    """How quick the stage is, once two canary answers came out finite and equal.

    Raises LocalFault otherwise. Uses rows that nobody uses yet and leaves them empty.
    """
    async with _giving_back(stage, executor, 1):
        first, _ = await _canary(stage, executor)
        second, step_ms = await _canary(stage, executor)
    if not all(np.isfinite(part).all() for part in first):
        raise LocalFault(f"the stage for layers {stage.span} computes values that are not finite: pull the model anew")
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise LocalFault(f"the stage for layers {stage.span} gives two answers to one question: check this machine")
    rows = min(stage.rows, BATCH_ROWS_MAX)
    async with _giving_back(stage, executor, rows):
        batch_s = await _full_batch_s(stage, executor, rows)
    return Proof(step_ms, rows / max(batch_s, 1e-6))


@asynccontextmanager
async def _giving_back(stage: Stage, executor: Executor, rows: int) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            for row in range(rows):
                await executor.run(partial(stage.release, row))


async def _full_batch_s(stage: Stage, executor: Executor, rows: int) -> float:
    """Seconds of a decode step of so many rows, after one for warming up."""
    tokens = np.zeros(rows, np.int32)
    hidden = np.ones((rows, stage.hidden), np.float32) if stage.span.start > 0 else None
    took_s = 0.0
    for position in range(BATCHES):
        began_s = trio.current_time()
        await executor.run(partial(stage.step_rows, range(rows), [position] * rows, tokens, hidden))
        took_s = trio.current_time() - began_s
    return took_s


async def _canary(stage: Stage, executor: Executor) -> tuple[list[Floats], float]:
    """A prefill and a few decode steps on made-up inputs: their outputs, and the median milliseconds of a decode."""
    rng = np.random.Generator(np.random.Philox(key=1))
    tokens = rng.integers(0, stage.vocab, PREFILL + DECODES, dtype=np.int32)
    hidden = None
    if stage.span.start > 0:
        hidden = rng.standard_normal((PREFILL + DECODES, stage.hidden)).astype(np.float32)

    def step(start: int, stop: int) -> Callable[[], Floats]:
        part = None if hidden is None else hidden[start:stop]
        return partial(stage.step, 0, start, tokens[start:stop], part, 1 if stage.span.stop == stage.layers else 0)

    outputs = [await executor.run(step(0, PREFILL))]
    times_ms: list[float] = []
    for position in range(PREFILL, PREFILL + DECODES):
        before_s = trio.current_time()
        outputs.append(await executor.run(step(position, position + 1)))
        times_ms.append(1000 * (trio.current_time() - before_s))
    return outputs, statistics.median(times_ms)
