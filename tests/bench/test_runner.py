"""Scenarios without a swarm: what counts, what is thrown out, and what an early end leaves."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

import pytest
import trio

from p2pgrid.bench import load
from p2pgrid.bench.document import Document, Environment
from p2pgrid.bench.runner import RETRIES_PER_REPEAT, TRIES_MAX, Figures, run_scenario
from p2pgrid.bench.scenario import Bench, Named, Options
from p2pgrid.errors import LocalFault

HERE = Environment(
    cpu="a processor",
    cores=2,
    memory_bytes=2**33,
    system="a system",
    python="3.11.0",
    versions={},
    commit="unknown",
    command="p2pgrid bench",
    started_at="",
    model="a model",
    foreign_cpu_share_max=0.0,
)


def shares(given: Iterable[float]) -> Callable[[], Callable[[], float]]:
    """A watch that sees these shares of foreign load, one a sample, and then an idle machine."""
    coming = iter(given)
    return lambda: lambda: next(coming, 0.0)


async def run(
    scenario: Callable[[Bench], object], foreign: Iterable[float] = (), stop: trio.Event | None = None, repeat: int = 3
) -> Document:
    named = Named("made up", "For a test.", scenario)  # type: ignore[arg-type]
    options = Options(repeat=repeat)
    return await run_scenario(named, options, HERE, stop=trio.Event() if stop is None else stop, watch=shares(foreign))


class Measure:
    """Each go gives the next number, from 1 on."""

    def __init__(self, metric: str = "speed") -> None:
        self.metric = metric
        self.goes = 0

    async def __call__(self) -> Figures:
        self.goes += 1
        await trio.sleep(1)
        return {self.metric: (float(self.goes), "m/s")}


async def test_a_disturbed_sample_is_thrown_out_counted_and_measured_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    measure = Measure()

    async def scenario(bench: Bench) -> None:
        for pair in range(3):
            await bench.sample("swarm", pair, measure)

    document = await run(scenario, foreign=[0.0, 0.5, 0.1, 0.15])
    (row,) = document.rows
    assert row.samples == (1.0, 3.0, 4.0)
    assert row.thrown_out == 1
    assert document.environment.foreign_cpu_share_max == 0.15
    assert document.complete
    assert document.notes == ()


async def test_a_machine_that_is_never_idle_ends_the_tries_and_is_told(autojump_clock: trio.testing.MockClock) -> None:
    measure = Measure()

    async def scenario(bench: Bench) -> None:
        await bench.sample("swarm", 0, measure)

    document = await run(scenario, foreign=[0.9] * 100)
    (row,) = document.rows
    assert (row.samples, row.thrown_out) == ((float(TRIES_MAX),), TRIES_MAX - 1)
    assert document.environment.foreign_cpu_share_max == 0.9
    assert "1 sample(s) count although" in document.notes[-1]


async def test_all_samples_together_are_measured_anew_only_so_often(autojump_clock: trio.testing.MockClock) -> None:
    measure = Measure()

    async def scenario(bench: Bench) -> None:
        for pair in range(50):
            await bench.sample("swarm", pair, measure)

    document = await run(scenario, foreign=[0.9] * 1000)
    (row,) = document.rows
    assert len(row.samples) == 50
    assert row.thrown_out == RETRIES_PER_REPEAT * 3
    assert measure.goes == 50 + RETRIES_PER_REPEAT * 3


async def test_a_warm_up_is_not_kept_and_not_repeated(autojump_clock: trio.testing.MockClock) -> None:
    measure = Measure()

    async def scenario(bench: Bench) -> None:
        await bench.sample("swarm", -1, measure)
        await bench.sample("swarm", 0, measure)

    document = await run(scenario, foreign=[0.9, 0.0])
    assert [row.samples for row in document.rows] == [(2.0,)]
    assert document.environment.foreign_cpu_share_max == 0.0


async def test_systems_are_compared_pair_by_pair_where_both_have_a_metric(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.compare("swarm", "one_process")
        for pair in range(3):

            async def swarm(pair: int = pair) -> Figures:
                return {"speed": (10.0 + pair, "m/s"), "of its own": (1.0, "s")}

            async def one_process() -> Figures:
                return {"speed": (10.0, "m/s")}

            await bench.sample("swarm", pair, swarm)
            await bench.sample("one_process", pair, one_process)

    document = await run(scenario)
    (ratio,) = document.ratios
    assert (ratio.metric, ratio.system, ratio.baseline) == ("speed", "swarm", "one_process")
    assert ratio.samples == pytest.approx((1.0, 1.1, 1.2))


async def test_an_interrupted_scenario_keeps_its_rows_and_cleans_up(autojump_clock: trio.testing.MockClock) -> None:
    stop = trio.Event()
    measure = Measure()
    closed = []

    async def scenario(bench: Bench) -> None:
        try:
            for pair in range(100):
                await bench.sample("swarm", pair, measure)
                bench.keep("swarm", "wait_s", "s", [0.5, 0.25])
        finally:
            closed.append(True)

    async with trio.open_nursery() as tasks:

        async def interrupt() -> None:
            await trio.sleep(2.5)
            stop.set()

        tasks.start_soon(interrupt)
        document = await run(scenario, stop=stop)
    assert closed
    assert not document.complete
    assert document.notes[-1] == "interrupted"
    assert {row.metric: row.samples for row in document.rows} == {"speed": (1.0, 2.0), "wait_s": (0.5, 0.25) * 2}
    assert trio.current_time() < 4


async def test_a_failure_keeps_the_rows_until_then_and_says_what_happened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.keep("swarm", "speed", "m/s", [1.0])
        async with trio.open_nursery() as tasks:

            async def break_down() -> None:
                raise LocalFault("node-2 ended with status 1: no room")

            tasks.start_soon(break_down)

    document = await run(scenario)
    assert not document.complete
    assert document.notes == ("failed: node-2 ended with status 1: no room",)
    assert [row.metric for row in document.rows] == ["speed"]


async def test_a_bug_is_no_result(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await run(scenario)


@pytest.mark.parametrize(("burnt_s", "least", "most"), [(0.0, 0.45, 0.5), (0.6, 0.0, 0.25)])
def test_what_a_child_used_is_ours_after_its_end_too(
    burnt_s: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was busy for 1 of 2 CPU seconds: what our child did not use of them was foreign."""
    machine = iter([(100.0, 1000.0), (101.0, 1002.0)])
    monkeypatch.setattr(load, "_machine_s", lambda: next(machine))
    foreign_share = load.watch_foreign_load()
    if burnt_s:
        burn = f"import time\nwhile time.process_time() < {burnt_s}: pass"
        subprocess.run([sys.executable, "-S", "-c", burn], check=True)
    assert least <= foreign_share() <= most


def test_cpu_seconds_are_those_of_the_processes_that_live() -> None:
    before_s = load.cpu_s([os.getpid()])
    while time.process_time() < before_s + 0.1:
        pass
    assert load.cpu_s([os.getpid(), 2**22 + 1]) > before_s
