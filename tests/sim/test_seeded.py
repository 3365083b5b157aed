"""The loaded coin: the same seed gives the same run, on any machine and whatever else Python leaves to chance."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
import trio
from trio._core import _run as scheduler

from p2pgrid.sim.faults import Fault, Freeze, Kill, Leave
from p2pgrid.sim.plan import Plan
from p2pgrid.sim.seeded import run_seeded
from p2pgrid.sim.world import simulate


async def _order_of_turns(rng: random.Random) -> list[int]:
    """In what order tasks get their turns when one event wakes them all, ten times over."""
    turns: list[int] = []
    events = [trio.Event() for _ in range(10)]

    async def task(number: int) -> None:
        for event in events:
            await event.wait()
            turns.append(number)

    async with trio.open_nursery() as tasks:
        for number in range(20):
            tasks.start_soon(task, number)
        for event in events:
            await trio.sleep(1)
            event.set()
    return turns


def test_trio_still_lets_its_coin_be_loaded() -> None:
    """Private to trio: when this fails, a new trio has no such switch, and runs no longer replay."""
    assert isinstance(scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(scheduler._r, random.Random)
    orders: dict[int, set[tuple[int, ...]]] = {seed: set() for seed in range(10)}
    elsewhere: list[object] = []
    for _ in range(3):
        for seed, seen in orders.items():
            seen.add(tuple(run_seeded(seed, _order_of_turns)))
            # Tasks lie in sets, in the order of their addresses, which these keep from coming back.
            elsewhere += [bytearray(500) for _ in range(97)]
    assert {seed: len(seen) for seed, seen in orders.items()} == dict.fromkeys(orders, 1), "a seed gives two runs"
    assert len({min(seen) for seen in orders.values()}) == 10, "trio no longer draws the order from the generator"


def test_what_was_loaded_is_put_back() -> None:
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    run_seeded(3, _order_of_turns)
    assert before == (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate())

    async def fail(rng: random.Random) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_seeded(3, fail)
    assert before == (scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate())


def test_the_clock_leaps_and_chance_comes_from_the_seed() -> None:
    async def main(rng: random.Random) -> tuple[float, float]:
        before_s = trio.current_time()
        await trio.sleep(10_000)
        return trio.current_time() - before_s, rng.random()

    assert run_seeded(5, main) == (10_000, random.Random(5).random())


STORM: Sequence[Fault] = (Kill(0, 2.6), Freeze(1, 3.2), Leave(2, 3.4))
PLAN = Plan(nodes=6, faults=STORM)


def test_the_same_seed_gives_the_same_trace_and_another_one_another() -> None:
    one, again = simulate(7, PLAN), simulate(7, PLAN)
    assert one.trace == again.trace
    assert one.outcomes == again.outcomes
    assert one.trace_hash == again.trace_hash
    assert len({simulate(seed, PLAN).trace_hash for seed in range(6)}) == 6


def test_the_same_seed_gives_the_same_trace_in_another_process() -> None:
    program = (
        f"from p2pgrid.sim.faults import *; from p2pgrid.sim.world import *\nprint(simulate(7, {PLAN!r}).trace_hash)"
    )
    expected = simulate(7, PLAN).trace_hash
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert run.stdout.split()[-1] == expected
