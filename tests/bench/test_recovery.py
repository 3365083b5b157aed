"""Recovery measured: which stage is killed when, and what is said of the answers."""

import hashlib
import random
from itertools import product

import pytest
import trio

from p2pgrid.bench.hearing import Heard, equal_share, hear
from p2pgrid.bench.scenario import Options
from p2pgrid.bench.scenarios.recovery import (
    SHARES,
    SYSTEMS,
    Case,
    Outcome,
    Outcomes,
    cases,
    largest_but_5_percent,
    missing_nodes,
    outcome_of,
    spans_of,
)
from p2pgrid.errors import BadInput, NoRoute, PeerUnavailable
from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import ModelDescription, wait_for_route
from p2pgrid.settings import PipelineSettings
from p2pgrid.wire.manifest import TokenizerData
from tests.bench.kept import KeptBench
from tests.swarm_kit import LAYERS, MODEL, PROMPT, alone, cut, joined, living
from tests.toy_model import toy_manifest

TOKENIZER = TokenizerData(1, "gpt2", "smollm", ("a", "b"), (1, 1), (), None, None, (), False, None)
MANIFEST = toy_manifest(hashlib.sha256(TOKENIZER.to_bytes()).hexdigest(), vocab=2, context=64)
TOY = ModelDescription(MODEL, MANIFEST, TOKENIZER)


# ── what happens when ────────────────────────────────────────────────────────────────────────────────────


def test_as_many_rounds_as_stages_strike_every_stage_at_every_share_both_ways() -> None:
    assert set(cases(3, 3)) == {Case(*each) for each in product(range(3), SHARES, SYSTEMS)}
    assert [case.share for case in cases(5, 2) if case.blow == "stop"] == [*SHARES, *SHARES]


def test_one_round_kills_three_different_stages() -> None:
    assert [case.stage for case in cases(3, 1) if case.blow == "kill"] == [0, 1, 2]


def test_the_spans_cover_all_layers_one_after_another() -> None:
    for stages in range(1, 31):
        spans = spans_of(30, stages)
        assert [layer for span in spans for layer in range(span.start, span.stop)] == list(range(30))
    with pytest.raises(BadInput, match="--nodes 31"):
        spans_of(30, 31)


def test_each_stage_is_filled_up_to_a_node_and_its_spare() -> None:
    a, b, c = spans_of(30, 3)
    assert missing_nodes([a, a, b], [a, b, c]) == [b, c, c]
    assert missing_nodes([a, a, b, b, c, c, c], [a, b, c]) == []


# ── what is said of an answer ────────────────────────────────────────────────────────────────────────────


def heard_until(times_s: list[float], error: PeerUnavailable | None, ended_s: float) -> Heard:
    return Heard(0.0, list(range(len(times_s))), times_s, (), error, ended_s)


def test_an_answer_that_broke_off_says_when_its_client_knew_it() -> None:
    broken = heard_until([1.0, 2.0], PeerUnavailable("gone"), 2.75)
    assert outcome_of(broken, 2.5, range(4)) == Outcome(False, 0.25, 1.0, 0.5)


def test_the_gap_of_a_recovered_answer_is_the_longest_wait_from_the_last_token_before_the_kill() -> None:
    recovered = heard_until([1.0, 2.0, 2.1, 6.0, 6.5], None, 6.5)
    outcome = outcome_of(recovered, 2.05, range(5))
    assert outcome.recovered
    assert outcome.after_s == pytest.approx(3.9)
    assert outcome.answered_share == 1.0


def test_an_earlier_long_wait_is_no_gap() -> None:
    assert outcome_of(heard_until([5.0, 5.5, 6.0], None, 6.0), 5.5, range(3)).after_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 1.0), ([1, 2], 1.0), ([1, 2, 3], 1.0), ([9, 2], 0.0), ([1, 9], 0.5), ([1, 2, 3, 4], 0.75)],
)
def test_tokens_are_equal_up_to_the_first_that_differs(tokens: list[int], share: float) -> None:
    assert equal_share(tokens, [1, 2, 3]) == share


def test_the_rows_and_the_note_do_not_hide_a_failure() -> None:
    bench = KeptBench(Options())
    outcomes = Outcomes([(Case(0, 0.25), Outcome(False, 0.1, 1.0, 0.25)), (Case(1, 0.5), Outcome(True, 2.0, 1.0, 1.0))])
    outcomes.keep(bench)
    assert bench.rows["recovered@25"] == [0.0]
    assert bench.rows["error_s@25"] == [0.1]
    assert bench.rows["gap_s@25"] == []
    assert (bench.rows["recovered@50"], bench.rows["gap_s@50"], bench.rows["error_s@50"]) == ([1.0], [2.0], [])
    assert bench.required == [
        "complete_and_equal of swarm",
        "gap_median_s of swarm",
        "complete_and_equal of swarm, frozen",
        "gap_median_s of swarm, frozen",
        "gap_p95_s of swarm",
    ]
    assert bench.rows["complete_and_equal"] == [0.0, 1.0]
    assert (bench.rows["gap_median_s"], bench.rows["gap_p95_s"]) == ([2.0], [2.0])
    assert bench.notes == ["1 of 2 answers were completed after a stage was lost (stage 0: 0 of 1, stage 1: 1 of 1)"]


def test_of_twenty_gaps_the_largest_is_left_out() -> None:
    assert largest_but_5_percent([float(i) for i in range(20)]) == 18.0
    assert largest_but_5_percent([3.0, 1.0]) == 3.0


def test_a_scenario_that_struck_nobody_says_so() -> None:
    assert Outcomes().summary() == "no stage was lost: the scenario ended before"


# ── hearing ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_heard_token_by_token_to_its_end(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    first, second = cut(2)
    async with (
        joined(network, 9) as client,
        living(network, 1, first) as one,
        living(network, 2, second) as two,
    ):
        await one.reached("serving")
        await two.reached("serving")
        await wait_for_route(client, MODEL, LAYERS)
        lengths: list[int] = []
        heard = await hear(client, TOY, PROMPT, 6, lambda so_far: lengths.append(len(so_far.token_ids)))
    assert heard.error is None
    assert heard.token_ids == await alone(max_tokens=6)
    assert lengths == [1, 2, 3, 4, 5, 6]
    assert [hop.span for hop in heard.route] == [first, second]
    assert heard.asked_s < heard.times_s[0] <= heard.times_s[-1] <= heard.ended_s


async def test_an_answer_that_breaks_off_keeps_what_came_and_says_why(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with joined(network, 9) as client, living(network, 1, Span(0, LAYERS), cost_s=0.5) as node:
        await node.reached("serving")
        await wait_for_route(client, MODEL, LAYERS)

        def stop_it(heard: Heard) -> None:
            if len(heard.token_ids) == 3:
                node.stop.set()

        heard = await hear(client, TOY, PROMPT, 30, stop_it)
    assert isinstance(heard.error, NoRoute), "nobody is left who could go on"
    assert heard.ended_s < heard.times_s[-1] + PipelineSettings().recover_s_max + 3
    assert 3 <= len(heard.token_ids) < 30
    assert equal_share(heard.token_ids, await alone(max_tokens=30)) == 1.0
