"""Whole swarms from one seed: real services, toy stages, faults on schedule, and what must hold whatever happens.

A failure names the seed and the plan; `p2pgrid sim --seed N` replays a seed without faults, and the printed
`simulate(…)` one with them.
"""

import dataclasses
import random
import secrets
from collections.abc import Callable, Sequence
from functools import cache

import msgspec
import pytest

from p2pgrid.core.generation import Generation
from p2pgrid.core.recovery import Feed, Held, Transcript, plan_feeds
from p2pgrid.core.stage_session import StageSession
from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.engine.stage import Stage
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.ids import Span
from p2pgrid.node.recovering import RecoveringSession
from p2pgrid.services.pipeline import PipelineSession
from p2pgrid.services.pipeline.holders import Holders
from p2pgrid.services.worker import Worker
from p2pgrid.services.worker.loop import StageLoop
from p2pgrid.services.worker.sent import SentSteps
from p2pgrid.services.worker.session import Session
from p2pgrid.settings import PipelineSettings
from p2pgrid.sim import world
from p2pgrid.sim.faults import Freeze, Kill, Leave, struck_by
from p2pgrid.sim.plan import Plan, Report
from p2pgrid.sim.storm import plan_storm
from p2pgrid.sim.world import simulate, undisturbed
from p2pgrid.wire.messages import Hop

FAULT_TO_END_S_MAX = PipelineSettings().recover_s_max + 5.0
"""A request that a fault hits is over, one way or the other, this long after it."""
Loss = Kill | Freeze | Leave
KINDS: tuple[type[Loss], ...] = (Kill, Freeze, Leave)
UNROUTED_S_MAX = 30.0
"""A request that was not open yet may try other routes until its patience ends."""


def replay(seed: int, plan: Plan) -> str:
    if plan == plan_storm(seed):
        return f"replay: p2pgrid sim --storm --seed {seed}"
    if not plan.faults:
        command = f"p2pgrid sim --seed {seed} --nodes {plan.nodes} --requests {plan.requests}"
        return f"replay: {command}; to the letter: simulate({seed}, {plan})"
    return f"replay: p2pgrid sim --seed {seed} is without the faults; with them: simulate({seed}, {plan})"


def all_layers_are_left(report: Report, plan: Plan) -> bool:
    """Whether the nodes that nothing befell make a whole route."""
    struck = {node for fault in plan.faults for node in struck_by(fault)}
    left = [span for i, span in enumerate(report.spans) if i not in struck and span is not None]
    reached = {0}
    for span in sorted(left):
        reached |= {span.stop} if span.start in reached else set()
    return plan.layers in reached


def check(report: Report, plan: Plan) -> None:
    """Right, or a right beginning and an error in time, and that only where no stage is left; and nothing leaked."""
    how = replay(report.seed, plan)
    last_fault_s = max((fault.at_s for fault in plan.faults), default=0.0)
    for outcome, expected in zip(report.outcomes, undisturbed(report.seed, plan), strict=True):
        assert outcome.token_ids == expected[: len(outcome.token_ids)], how
        if outcome.error is None:
            assert len(outcome.token_ids) == len(expected), how
            continue
        assert outcome.error.startswith(("PeerUnavailable: ", "NoRoute: ", "Overloaded: ")), how
        assert "\n" not in outcome.error, how
        limit_s = FAULT_TO_END_S_MAX if outcome.token_ids else UNROUTED_S_MAX
        assert outcome.ended_at_s <= last_fault_s + limit_s, f"{outcome.error}; {how}"
        assert not (outcome.token_ids and all_layers_are_left(report, plan)), f"{outcome.error}; {how}"
    assert report.sessions_leaked == 0, how


# ── without faults ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(20))
def test_a_swarm_answers_like_one_process(seed: int) -> None:
    plan = Plan(nodes=1 + seed % 7, layers=(3, 12, 17, 30)[seed % 4], requests=1 + seed % 4, max_tokens=12)
    if plan.nodes > plan.layers:
        plan = Plan(nodes=plan.layers, layers=plan.layers, requests=plan.requests, max_tokens=12)
    report = simulate(seed, plan)
    how = replay(seed, plan)
    assert [outcome.error for outcome in report.outcomes] == [None] * plan.requests, how
    assert [outcome.token_ids for outcome in report.outcomes] == undisturbed(seed, plan), how
    assert missing_layers([span for span in report.spans if span is not None], plan.layers) == [], how
    check(report, plan)


def test_seeds_and_requests_ask_for_different_answers() -> None:
    """Else the comparisons here could not fail."""
    answers = [tuple(answer) for seed in range(5) for answer in undisturbed(seed)]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("seed", range(4))
def test_a_node_with_other_weights_is_noticed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(nodes=3, span_max=4, requests=1)
    right = undisturbed(seed, plan)

    def other_weights(span: Span, layers: int, rows: int, context_max: int, *, seed: int, vocab: int) -> Stage:
        return ToyStage(span, layers, rows, context_max, seed=seed + (span.start == 4), vocab=vocab)

    monkeypatch.setattr(world, "WatchedStage", other_weights)
    report = simulate(seed, plan)
    assert report.outcomes[0].error is None
    assert [outcome.token_ids for outcome in report.outcomes] != right
    with pytest.raises(AssertionError, match=f"p2pgrid sim --seed {seed} --nodes 3"):
        monkeypatch.undo()
        check(report, plan)


def test_a_row_that_is_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(nodes=2, requests=1, max_tokens=4)

    async def say_nothing(self: object) -> None:
        pass

    monkeypatch.setattr("p2pgrid.services.pipeline.holders.Holders.close", say_nothing)
    monkeypatch.setattr("p2pgrid.services.worker.Worker.on_lost", lambda self, peer, reason: None)
    assert simulate(1, plan).sessions_leaked > 0


# ── with faults ──────────────────────────────────────────────────────────────────────────────────────────


def calm_plan(seed: int, **changes: int) -> Plan:
    shape = {"nodes": 3 + seed % 4, "layers": (6, 12, 17)[seed % 3], "requests": 2, "max_tokens": 40}
    return Plan(**{**shape, **changes})  # type: ignore[arg-type]


@cache
def token_times_s(seed: int) -> tuple[float, ...]:
    """When the tokens come as long as nothing happens."""
    trace = simulate(seed, calm_plan(seed)).trace
    return tuple(float(line.split()[0]) for line in trace if " token " in line)


def with_fault(seed: int, kind: type[Loss], rng: random.Random) -> Plan:
    times_s = token_times_s(seed)
    at_s = rng.uniform(times_s[1], times_s[-2])
    calm = calm_plan(seed)
    return Plan(
        nodes=calm.nodes,
        layers=calm.layers,
        requests=calm.requests,
        max_tokens=calm.max_tokens,
        faults=(kind(rng.randrange(calm.nodes), at_s),),
    )


@pytest.mark.parametrize("seed", range(14))
@pytest.mark.parametrize("kind", KINDS)
def test_losing_a_node_in_mid_answer_leaves_answers_right_and_ends_those_that_nobody_can_go_on_with(
    kind: type[Loss], seed: int
) -> None:
    plan = with_fault(seed, kind, random.Random(f"{kind.__name__} {seed}"))
    check(simulate(seed, plan), plan)


def test_faults_hit_requests_and_spare_others() -> None:
    """Else the test above would show nothing."""
    ends: set[tuple[type[Loss], str]] = set()
    for kind in KINDS:
        for seed in range(2, 7):
            plan = with_fault(seed, kind, random.Random(f"{kind.__name__} {seed}"))
            for outcome in simulate(seed, plan).outcomes:
                end = "error" if outcome.error else "recovered" if outcome.recoveries else "spared"
                ends.add((kind, end))
    assert {(Kill, "recovered"), (Freeze, "recovered"), (Leave, "recovered")} < ends
    assert {end for _, end in ends} >= {"recovered", "spared"}


@pytest.mark.parametrize("seed", range(100, 116))
def test_several_faults_at_any_time_leave_no_wrong_answer_and_no_row(seed: int) -> None:
    rng = random.Random(f"storm {seed}")
    nodes = rng.randint(3, 7)
    faults: list[Loss] = [
        rng.choice(KINDS)(node, rng.uniform(0, 4.5)) for node in rng.sample(range(nodes), rng.randint(1, 3))
    ]
    plan = Plan(nodes=nodes, layers=rng.choice([6, 12, 17]), requests=2, max_tokens=30, faults=tuple(faults))
    check(simulate(seed, plan), plan)


@pytest.mark.parametrize("at_s", [0.0, 0.2, 1.0, 1.9])
def test_nodes_killed_before_they_serve_are_no_loss(at_s: float) -> None:
    """Of six nodes that would hold every layer twice over three are left."""
    plan = Plan(nodes=6, layers=12, span_max=6, requests=1, max_tokens=8, faults=tuple(Kill(i, at_s) for i in range(3)))
    report = simulate(3, plan)
    check(report, plan)
    assert report.outcomes[0].error is None, replay(3, plan)


# ── storms ───────────────────────────────────────────────────────────────────────────────────────────────


def weather(seed: int) -> None:
    """A storm: one node of every span is spared, so that every request is answered, to the token."""
    plan = plan_storm(seed)
    how = replay(seed, plan)
    try:
        report = simulate(seed, plan)
    except Exception as error:  # a stage that was made to run what it must not, or whatever else broke
        raise AssertionError(f"{error!r}; {how}") from error
    assert [outcome.error for outcome in report.outcomes] == [None] * plan.requests, how
    assert [outcome.token_ids for outcome in report.outcomes] == undisturbed(seed, plan), how
    check(report, plan)


@pytest.mark.parametrize("seed", range(10))
def test_a_storm_changes_no_answer(seed: int) -> None:
    weather(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 100))
def test_more_storms_change_no_answer(seed: int) -> None:
    weather(seed)


def test_a_session_that_ends_while_its_row_is_copied_out_ends_no_node() -> None:
    """The copy waited for its turn in the lane behind the step of another session; the row was given back before it."""
    weather(40115)


def test_rows_that_were_handed_over_to_no_purpose_take_up_no_room() -> None:
    """Answers that were being opened as a stage left were begun anew elsewhere, and nobody told who had their rows."""
    weather(60547)


@pytest.mark.slow
def test_a_node_that_works_is_found_among_many_that_hang() -> None:
    """Thirteen of 36 nodes freeze or stall here for good: eight attempts were not enough."""
    weather(40299)


@pytest.mark.slow
def test_stages_that_hang_are_asked_as_soon_as_they_promised_to_be_done() -> None:
    """A route meets several that hang, one after another; each was waited for up to twice as long as it had said."""
    weather(70171)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [secrets.randbelow(2**31) for _ in range(20)], ids=lambda seed: "fresh")
def test_a_storm_that_nobody_has_seen_changes_no_answer(seed: int) -> None:
    weather(seed)


Plant = Callable[[pytest.MonkeyPatch], None]


def _reuse_an_epoch(patch: pytest.MonkeyPatch) -> None:
    reroute = PipelineSession.reroute

    async def wrong(self: PipelineSession, route: tuple[Hop, ...]) -> None:
        self.epoch -= 1
        await reroute(self, route)

    patch.setattr(PipelineSession, "reroute", wrong)


def _go_on_a_position_late(patch: pytest.MonkeyPatch) -> None:
    resume_at = Transcript.resume_at
    patch.setattr(Transcript, "resume_at", lambda self, length: resume_at(self, length) + 1)


def _remember_another_token(patch: pytest.MonkeyPatch) -> None:
    drawn = Transcript.drawn
    patch.setattr(Transcript, "drawn", lambda self, position, token: drawn(self, position, token ^ 1))


def _replay_a_step_too_few(patch: pytest.MonkeyPatch) -> None:
    between = SentSteps.between
    patch.setattr(SentSteps, "between", lambda self, start, stop: between(self, start, stop - 1))


def _replay_under_the_old_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "p2pgrid.services.worker.session.again",
        lambda step, asked: msgspec.structs.replace(step, want="nothing", through=asked.through),
    )


def _fill_a_stage_too_few(patch: pytest.MonkeyPatch) -> None:
    def wrong(held: Sequence[Held], start: int) -> list[Feed]:
        return [dataclasses.replace(feed, through=feed.through - 1) for feed in plan_feeds(held, start)]

    patch.setattr("p2pgrid.services.pipeline.session.plan_feeds", wrong)


def _leave_stages_waiting_that_replay_nothing(patch: pytest.MonkeyPatch) -> None:
    replay = Session.replay
    patch.setattr(Session, "replay", lambda self, asked: replay(self, asked) if asked.stop > asked.start else None)


def _keep_the_row_of_a_client_that_is_gone(patch: pytest.MonkeyPatch) -> None:
    async def say_nothing(self: Holders) -> None:
        pass

    patch.setattr(Worker, "on_lost", lambda self, peer, reason: None)
    patch.setattr(Holders, "close", say_nothing)


def _run_again_what_is_said_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StageSession, "takes", lambda self, step: True)


def _take_a_token_again_that_is_told_again(patch: pytest.MonkeyPatch) -> None:
    on_token = Generation.on_token
    patch.setattr(
        Generation, "on_token", lambda self, position, token: on_token(self, max(position, self.next_position), token)
    )


def _wait_for_a_stage_whose_step_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecoveringSession, "_wait_s", lambda self: PipelineSettings().token_s_max)


def _ask_only_the_session_that_waits_whether_its_stage_is_stuck(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: StageLoop) -> None:
        pass

    patch.setattr(StageLoop, "not_stuck", at_once)


PLANTED: tuple[Plant, ...] = (
    _reuse_an_epoch,
    _go_on_a_position_late,
    _remember_another_token,
    _replay_a_step_too_few,
    _replay_under_the_old_epoch,
    _fill_a_stage_too_few,
    _leave_stages_waiting_that_replay_nothing,
    _keep_the_row_of_a_client_that_is_gone,
    _run_again_what_is_said_again,
    _take_a_token_again_that_is_told_again,
    _wait_for_a_stage_whose_step_never_ends,
    _ask_only_the_session_that_waits_whether_its_stage_is_stuck,
)


@pytest.mark.parametrize(
    "plant",
    [pytest.param(plant, marks=[pytest.mark.slow] if number % 4 else []) for number, plant in enumerate(PLANTED)],
)
def test_a_planted_bug_is_caught_by_a_storm(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the storms would show nothing. A failing seed is named with the command that replays it."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"replay: p2pgrid sim --storm --seed \d+"):
        for seed in range(20):
            weather(seed)
