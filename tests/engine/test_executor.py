import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from p2pgrid.engine.executor import InlineExecutor, LaneExecutor


def gated(gate: threading.Event, started: trio.Event, log: list[str]) -> Callable[[], str]:
    """Work that tells the loop that it runs, and stops when the gate opens."""

    def work() -> str:
        log.append("started")
        trio.from_thread.run_sync(started.set)
        gate.wait()
        log.append("stopped")
        return "result"

    return work


async def test_work_runs_beside_the_loop_and_its_result_comes_back() -> None:
    here = threading.get_ident()
    there = await LaneExecutor().run(threading.get_ident)
    assert there != here


async def test_an_error_of_the_work_reaches_the_caller_and_frees_the_lane() -> None:
    lane = LaneExecutor()
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0)
    assert await lane.run(lambda: 2) == 2


async def test_a_cancelled_call_keeps_the_lane_until_the_work_has_stopped() -> None:
    lane, gate, started, log = LaneExecutor(), threading.Event(), trio.Event(), list[str]()
    scope = trio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await lane.run(gated(gate, started, log))
            log.append("returned")

    async def next_one() -> None:
        await lane.run(lambda: log.append("next"))

    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(cancelled)
            await started.wait()
            scope.cancel()
            tasks.start_soon(next_one)
            await trio.testing.wait_all_tasks_blocked()
            assert log == ["started"]
            gate.set()
    finally:
        gate.set()
    assert log.index("stopped") < log.index("next")
    assert sorted(log) == ["next", "returned", "started", "stopped"]


async def test_a_call_cancelled_while_it_waits_never_starts() -> None:
    lane, gate, started, log = LaneExecutor(), threading.Event(), trio.Event(), list[str]()
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(lane.run, gated(gate, started, log))
            await started.wait()
            with trio.CancelScope() as scope:
                scope.cancel()
                await lane.run(lambda: log.append("never"))
            assert scope.cancelled_caught
            gate.set()
    finally:
        gate.set()
    assert log == ["started", "stopped"]


async def test_the_lane_is_first_come_first_served() -> None:
    lane, gate, started, log = LaneExecutor(), threading.Event(), trio.Event(), list[str]()
    try:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(lane.run, gated(gate, started, log))
            await started.wait()
            for name in "abcde":
                tasks.start_soon(lane.run, lambda name=name: log.append(name))
                await trio.testing.wait_all_tasks_blocked()
            gate.set()
    finally:
        gate.set()
    assert log == ["started", "stopped", *"abcde"]


async def test_inline_work_costs_virtual_time_one_piece_after_another(autojump_clock: trio.testing.MockClock) -> None:
    lane, done = InlineExecutor(0.5), list[tuple[str, float]]()

    async def call(name: str) -> None:
        await lane.run(lambda: done.append((name, trio.current_time())))

    start = trio.current_time()
    async with trio.open_nursery() as tasks:
        for name in "abc":
            tasks.start_soon(call, name)
            await trio.testing.wait_all_tasks_blocked()
    assert [(name, at - start) for name, at in done] == [("a", 0.5), ("b", 1.0), ("c", 1.5)]


async def test_inline_work_may_cost_differently_each_time(autojump_clock: trio.testing.MockClock) -> None:
    costs = iter([1.0, 3.0])
    lane, start = InlineExecutor(lambda: next(costs)), trio.current_time()
    assert await lane.run(trio.current_time) - start == 1.0
    assert await lane.run(trio.current_time) - start == 4.0


async def test_inline_work_that_began_is_finished_when_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    lane, log, start = InlineExecutor(2.0), list[str](), trio.current_time()
    with trio.move_on_after(1.0):
        await lane.run(lambda: log.append("done"))
    assert log == ["done"]
    assert trio.current_time() - start == 2.0
    assert await lane.run(lambda: "free") == "free"
