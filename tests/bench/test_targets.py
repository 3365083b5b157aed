"""Figures of one system held against each other, and what figures must be."""

from collections.abc import Sequence

import pytest
import trio

from p2pgrid.bench.document import Document, Limit, Target
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench
from p2pgrid.bench.stats import LIMIT, largest_but_1_percent
from tests.bench.test_runner import run


async def measured(ask: Sequence[tuple[str, str, str, float | None, float | None]]) -> Document:
    """Two systems at two loads, with the given targets: metric, system, baseline, at least, at most."""

    async def scenario(bench: Bench) -> None:
        bench.relate("speedup@8", "swarm", "rate@8", "rate@1")
        bench.compare("swarm", "alone")
        bench.limit(Limit("rate@1", "swarm", 20.0, "1/s", 0.5, "made up"))
        for metric, system, baseline, at_least, at_most in ask:
            bench.require(metric, system, baseline, at_least=at_least, at_most=at_most)
        for pair, (one, eight) in enumerate([(10.0, 20.0), (10.0, 40.0), (20.0, 60.0)]):

            async def swarm(one: float = one, eight: float = eight) -> Figures:
                return {"rate@1": (one, "1/s"), "rate@8": (eight, "1/s")}

            async def alone() -> Figures:
                return {"rate@1": (10.0, "1/s")}

            await bench.sample("swarm", pair, swarm)
            await bench.sample("alone", pair, alone)

    return await run(scenario)


async def test_two_figures_of_one_system_are_compared_pair_by_pair(autojump_clock: trio.testing.MockClock) -> None:
    document = await measured([])
    (speedup,) = [ratio for ratio in document.ratios if ratio.metric == "speedup@8"]
    assert speedup.samples == (2.0, 4.0, 3.0)
    assert (speedup.system, speedup.baseline, speedup.what) == ("swarm", "swarm", "rate@8 / rate@1")
    assert document.targets == ()


@pytest.mark.parametrize(
    ("baseline", "metric", "at_least", "at_most", "reached", "met"),
    [
        ("swarm", "speedup@8", 3.0, None, 3.0, True),
        ("swarm", "speedup@8", 3.1, None, 3.0, False),
        ("alone", "rate@1", None, 1.0, 1.0, True),
        (LIMIT, "rate@1", 0.9, None, 0.5, False),
        ("", "rate@1", 10.0, None, 10.0, True),
        ("", "rate@1", None, 19.0, 20.0, False),  # the worst sample counts, not the median
        ("", "rate@1", 10.1, None, 10.0, False),
        ("nobody", "rate@1", 0.1, None, None, False),
        ("", "never measured", None, 1e9, None, False),
    ],
)
async def test_a_target_is_judged_by_what_was_measured(
    baseline: str,
    metric: str,
    at_least: float | None,
    at_most: float | None,
    reached: float | None,
    met: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    document = await measured([(metric, "swarm", baseline, at_least, at_most)])
    bound = at_most if at_least is None else at_least
    must = "at_most" if at_least is None else "at_least"
    assert document.targets == (Target(metric, "swarm", baseline, must, bound, reached, met),)  # type: ignore[arg-type]


async def test_both_bounds_are_two_targets(autojump_clock: trio.testing.MockClock) -> None:
    document = await measured([("speedup@8", "swarm", "swarm", 2.0, 2.5)])
    assert [(target.must, target.met) for target in document.targets] == [("at_least", True), ("at_most", False)]


def test_of_few_samples_the_largest_stands_for_the_99th_percentile() -> None:
    assert largest_but_1_percent([3.0, 1.0, 2.0]) == 3.0
    assert largest_but_1_percent([float(i) for i in range(200)]) == 197.0
