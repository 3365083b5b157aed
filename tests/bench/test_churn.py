"""Churn measured: who may be killed, and what is said of the requests."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.bench.hearing import Heard
from p2pgrid.bench.scenario import Options
from p2pgrid.bench.scenarios.churn import FULL, QUICK, Plan, Tally, whom_to_kill
from p2pgrid.errors import NoRoute, PeerUnavailable
from p2pgrid.ids import Span
from tests.bench.kept import KeptBench

SPANS = st.dictionaries(
    st.integers(1, 99).map(lambda number: f"node-{number}"), st.sampled_from([Span(0, 10), Span(10, 20), Span(20, 30)])
)


@settings(max_examples=100, deadline=None)
@given(spans=SPANS, seed=st.integers())
def test_every_span_that_was_served_is_served_after_a_kill(spans: dict[str, Span], seed: int) -> None:
    victim = whom_to_kill(spans, random.Random(seed))
    if victim is None:
        assert max(Counter(spans.values()).values(), default=0) <= 1
    else:
        assert {span for name, span in spans.items() if name != victim} == set(spans.values())


def test_every_node_of_a_full_swarm_may_be_the_one() -> None:
    spans = {f"node-{i}": Span(10 * (i % 3), 10 * (i % 3) + 10) for i in range(6)}
    rng = random.Random(3)
    assert {whom_to_kill(spans, rng) for _ in range(200)} == set(spans)


def heard(tokens: list[int], error: PeerUnavailable | NoRoute | None = None) -> Heard:
    return Heard(asked_s=10.0, token_ids=tokens, error=error, ended_s=12.0)


def test_shares_are_of_all_that_were_asked_and_of_all_that_finished() -> None:
    bench = KeptBench(Options())
    tally = Tally(started_s=4.0, kills=2, joins=1)
    tally.add(heard([1, 2]), [1, 2])
    tally.add(heard([1, 3]), [1, 2])
    tally.add(heard([1], PeerUnavailable("gone")), [1, 2])
    tally.give_up(14.0)
    tally.keep(bench)
    assert bench.rows == {
        "finished_share": [0.5],
        "requests_per_s": [0.2],
        "equal_share": [0.5],
        "request_s": [2.0, 2.0],
    }
    assert bench.notes == [
        "2 nodes killed and 1 started: 2 of 4 requests finished, 1 of them with the undisturbed answer;"
        " not finished: 1 × PeerUnavailable, 1 × no answer in 30 s"
    ]


def test_a_part_of_the_undisturbed_answer_is_not_that_answer() -> None:
    tally = Tally()
    tally.add(heard([1]), [1, 2])
    assert (len(tally.request_s), tally.equal) == (1, 0)


def test_a_scenario_that_was_interrupted_before_any_request_has_no_rows_and_says_so() -> None:
    bench = KeptBench(Options())
    Tally().keep(bench)
    assert bench.rows == {}
    assert bench.notes[0].endswith("0 of 0 requests finished, 0 of them with the undisturbed answer")


@pytest.mark.parametrize("plan", [FULL, QUICK])
def test_every_plan_has_at_least_two_kills_and_two_joins(plan: Plan) -> None:
    assert plan.length_s / plan.every_s >= 4
