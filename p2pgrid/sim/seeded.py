"""One seed, one run: trio with a virtual clock and a scheduler whose coin is loaded.

Trio shuffles runnable tasks on purpose, with a generator of its own. Loading it is private to trio, so it is
done here and nowhere else; tests/sim/test_seeded.py fails when a new trio no longer allows it.
"""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing
from trio._core import _run as scheduler  # see above

T = TypeVar("T")


def run_seeded(seed: int, main: Callable[[random.Random], Awaitable[T]]) -> T:
    """Run `main(rng)` on a virtual clock that leaps whenever every task waits; same seed, same run."""
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r.seed(seed)
    try:
        return trio.run(main, random.Random(seed), clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        scheduler._r.setstate(before[1])
