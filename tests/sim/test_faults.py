"""What each fault does to a swarm, alone."""

import pytest

from p2pgrid.core.routing import PATIENCE_S_MIN
from p2pgrid.ids import Span
from p2pgrid.services.pipeline import PipelineSession
from p2pgrid.settings import PipelineSettings
from p2pgrid.sim.faults import Delay, Duplicate, Fault, Partition, Slow, Stall
from p2pgrid.sim.plan import Outcome, Plan
from p2pgrid.sim.world import simulate, undisturbed

HALVES = [Span(0, 6), Span(6, 12)]


def outcome_of(*faults: Fault, copies: int = 1, max_tokens: int = 40) -> Outcome:
    """Of one request to two stages, or to `copies` of each. Its tokens are the right ones, and no row is left."""
    spans = HALVES * copies
    plan = Plan(
        nodes=len(spans), spans=spans, requests=1, max_tokens=max_tokens, ask_at_s=4.0, faults=faults, prompt_tokens=20
    )
    report = simulate(5, plan)
    assert report.outcomes[0].error is None
    assert [report.outcomes[0].token_ids] == undisturbed(5, plan)
    assert report.sessions_leaked == 0
    return report.outcomes[0]


def took_s(outcome: Outcome) -> float:
    return outcome.ended_at_s - outcome.asked_at_s


def test_steps_of_a_slow_node_take_longer_and_it_is_not_left() -> None:
    calm, slow = outcome_of(copies=2), outcome_of(Slow(0, 20.0, 4.1, 9.0), Slow(2, 20.0, 4.1, 9.0), copies=2)
    assert took_s(slow) > took_s(calm) + 1.0
    assert slow.recoveries == 0


def test_a_node_so_slow_that_it_is_asked_whether_it_lives_is_not_left() -> None:
    faults = [Slow(node, 1.1 * PATIENCE_S_MIN / 0.005, 4.2, 12.0) for node in (0, 2)]
    slow = outcome_of(*faults, copies=2)
    assert took_s(slow) > PATIENCE_S_MIN
    assert slow.recoveries == 0


def test_messages_that_are_delayed_are_waited_for() -> None:
    calm, late = outcome_of(copies=2), outcome_of(Delay(0, 0.6, 4.1, 6.0), Delay(2, 0.6, 4.1, 6.0), copies=2)
    assert took_s(late) > took_s(calm) + 1.0
    assert late.recoveries == 0


def test_a_node_whose_steps_never_end_is_left() -> None:
    stalled = outcome_of(Stall(0, 4.2), copies=2), outcome_of(Stall(2, 4.2), copies=2)
    assert sorted(outcome.recoveries for outcome in stalled) == [0, 1], "one of them had the request"


def test_nodes_that_are_cut_off_together_are_left() -> None:
    cut_off = [outcome_of(Partition(nodes, 4.2, 9.0), copies=2) for nodes in ((0, 1), (2, 3))]
    assert any(outcome.recoveries for outcome in cut_off)


def test_what_is_said_twice_is_heard_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = [0]
    take = PipelineSession.take

    def count(self: PipelineSession, peer: object, message: object) -> None:
        heard[0] += 1
        take(self, peer, message)  # type: ignore[arg-type]

    monkeypatch.setattr(PipelineSession, "take", count)
    calm = outcome_of()
    once, heard[0] = heard[0], 0
    assert took_s(outcome_of(Duplicate(0.0, 20.0))) == pytest.approx(took_s(calm), abs=0.1)
    assert heard[0] == 2 * once


def test_a_node_that_works_is_found_behind_five_whose_steps_never_end() -> None:
    """To find each of them out takes longer than a route is waited for where there is none."""
    spans = [Span(0, 6)] * 6 + [Span(6, 12)]
    stalls = tuple(Stall(node, 3.9) for node in range(5))
    plan = Plan(nodes=7, spans=spans, requests=1, max_tokens=4, ask_at_s=4.0, faults=stalls)
    report = simulate(4, plan)
    assert report.outcomes[0].error is None
    settings = PipelineSettings()
    assert took_s(report.outcomes[0]) > settings.recover_s_max + PATIENCE_S_MIN + settings.open_s_max
