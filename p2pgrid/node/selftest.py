"""A node says that it serves only after a canary answer went through its own stage."""

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import trio

from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault
from p2pgrid.wire.tensors import Floats

PREFILL = 8
DECODES = 6


async def prove_stage(stage: Stage, executor: Executor) -> float:
    """Milliseconds of a one-token step, once two canary answers came out finite and equal.

    Raises LocalFault otherwise. Uses row 0 and leaves it empty.
    """
    try:
        first, _ = await _canary(stage, executor)
        second, step_ms = await _canary(stage, executor)
    finally:
        with trio.CancelScope(shield=True):
            await executor.run(partial(stage.release, 0))
    if not all(np.isfinite(part).all() for part in first):
        raise LocalFault(f"the stage for layers {stage.span} computes values that are not finite: pull the model anew")
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise LocalFault(f"the stage for layers {stage.span} gives two answers to one question: check this machine")
    return step_ms


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
