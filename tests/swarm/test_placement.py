"""Where nodes settle, from seeds: when they come in a storm, when some are lost, when the network falls apart."""

import random

import pytest

from p2pgrid.core.swarm_view import missing_layers, replicas
from p2pgrid.ids import Span
from p2pgrid.sim.faults import Kill, Partition
from p2pgrid.sim.plan import Plan, Report
from p2pgrid.sim.world import simulate, undisturbed

SETTLED_S_MAX = 60.0


def spans_of(report: Report, gone: set[int] = frozenset()) -> list[Span]:  # type: ignore[assignment]
    return [span for i, span in enumerate(report.spans) if span is not None and i not in gone]


def is_even(spans: list[Span], layers: int) -> bool:
    """No layer is more than 1.5 times better covered than the worst, or by one node: they come in whole ones."""
    counts = replicas(spans, layers)
    return 0 < max(counts) <= max(1.5 * min(counts), min(counts) + 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_hundred_nodes_that_join_in_a_storm_settle_and_stay() -> None:
    rng = random.Random(6)
    sizes = [rng.randint(4, 12) for _ in range(100)]
    plan = Plan(nodes=100, layers=30, span_maxes=sizes, ask_at_s=66.0, requests=2, prompt_tokens=4, max_tokens=4)
    report = simulate(6, plan)
    assert len(spans_of(report)) == 100
    assert all(len(span) <= size for span, size in zip(spans_of(report), sizes, strict=True))
    assert is_even(spans_of(report), 30), replicas(spans_of(report), 30)
    assert all(at_s < SETTLED_S_MAX for at_s, _, _ in report.moves)
    assert [outcome.error for outcome in report.outcomes] == [None, None]


@pytest.mark.parametrize("seed", range(6))
def test_a_gap_is_filled_by_a_node_whose_layers_others_hold_and_requests_go_on(seed: int) -> None:
    """Of six nodes that hold each third twice, both holders of one third are killed."""
    calm = Plan(nodes=6, layers=12, span_max=4, ask_at_s=8.0, requests=1)
    spans = simulate(seed, calm).spans
    lost = [i for i, span in enumerate(spans) if span == spans[0]]
    assert len(lost) == 2
    plan = Plan(nodes=6, layers=12, span_max=4, ask_at_s=25.0, faults=tuple(Kill(i, 10.0) for i in lost))
    report = simulate(seed, plan)
    replay = f"replay: simulate({seed}, {plan})"
    assert missing_layers(spans_of(report, set(lost)), 12) == [], replay
    assert [outcome.token_ids for outcome in report.outcomes] == undisturbed(seed, plan), replay
    assert [outcome.error for outcome in report.outcomes] == [None] * 3, replay
    assert len(report.moves) == 1, f"{report.moves}; {replay}"
    assert report.moves[0][0] < 10.0 + 8.0, replay
    assert report.sessions_leaked == 0, replay


CUT = Partition((0, 1, 2, 3), 10.0, 40.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("asked_at_s", "known"), [(25.0, 4), (100.0, 8)], ids=["while it is apart", "when it is whole"]
)
def test_both_halves_go_on_and_their_views_merge_when_the_network_is_whole_again(
    asked_at_s: float, known: int, seed: int
) -> None:
    """Eight nodes of half the model each: four are cut off, both fours go on with every layer."""
    plan = Plan(nodes=8, layers=12, span_max=6, ask_at_s=asked_at_s, faults=(CUT,))
    report = simulate(seed, plan)
    replay = f"replay: simulate({seed}, {plan})"
    assert [outcome.token_ids for outcome in report.outcomes] == undisturbed(seed, plan), replay
    for half in (report.spans[:4], report.spans[4:]):
        assert missing_layers([span for span in half if span is not None], 12) == [], replay
    assert is_even(spans_of(report), 12) or asked_at_s < CUT.healed_at_s, replay
    assert report.sessions_leaked == 0, replay
    assert all(len(nodes) == known for nodes in report.known), f"{report.known}; {replay}"
