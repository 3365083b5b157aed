"""Nodes that leave in the middle of answers: what they hold goes to a replica, and nothing is computed again."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.ids import PeerId
from p2pgrid.node.client import open_session
from p2pgrid.node.recovering import RecoveringSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.services.worker import handover
from p2pgrid.services.worker.worker import HANDOVERS_AT_ONCE
from p2pgrid.wire.messages import Sampling
from tests.node.test_recovering import PUNISHED, STRINGS, TOKENS, Swarm, doubled, swarm
from tests.swarm_kit import GREEDY, LAYERS, MODEL, PROMPT, SEEDED, alone, answer_of, cut, generation


def leaving(here: Swarm, hop: int) -> Callable[[RecoveringSession], None]:
    """Have the node at that hop leave; what it held must have gone by the time it has."""

    def strike(session: RecoveringSession) -> None:
        peer = session.route[hop].peer
        here.life_of(peer).stop.set()
        here.gone.add(peer)

    return strike


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("after", [1, 7])
@pytest.mark.parametrize(("parts", "hop"), [(1, 0), (3, 0), (3, 1), (3, 2)])
async def test_a_stage_that_leaves_costs_neither_a_token_nor_a_step(
    parts: int, hop: int, after: int, sampling: Sampling, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(parts), cost_s=0.03 / parts) as here:
        answer = await here.ask({after: leaving(here, hop)}, sampling)
        assert answer.token_ids == await alone(sampling, max_tokens=TOKENS)
        assert [recovery.replayed for recovery in answer.recoveries] == [0]
        assert not here.gone & {stage.peer for stage in answer.route}
        assert here.gap_s < 0.25
        await here.check_nothing_is_left()


@pytest.mark.parametrize("later_s", [0.0, 0.02, 0.04, 0.06, 0.08])
@pytest.mark.parametrize("hop", [0, 1])
async def test_no_token_that_is_on_its_way_is_computed_again(
    hop: int, later_s: float, autojump_clock: trio.abc.Clock
) -> None:
    """Whenever a stage is told to leave while an answer goes round in 93 ms, two rounds are waited for at most."""
    async with swarm(doubled(3), cost_s=0.03) as here, trio.open_nursery() as tasks:

        async def leave_later(session: RecoveringSession) -> None:
            await trio.sleep(later_s)
            leaving(here, hop)(session)

        answer = await here.ask({7: lambda session: tasks.start_soon(leave_later, session)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 1
        assert here.gap_s < 0.2


@pytest.mark.parametrize("hop", range(3))
async def test_it_may_leave_in_the_middle_of_a_prompt(hop: int, autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3), cost_s=0.03) as here:
        answer = await here.ask({0: leaving(here, hop)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


@pytest.mark.parametrize("later_s", [0.0, 0.002, 0.004, 0.008, 0.02])
async def test_a_stage_may_leave_while_its_neighbour_is_lost(later_s: float, autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3), latency_s=0.003) as here, trio.open_nursery() as tasks:

        def strike(session: RecoveringSession) -> None:
            tasks.start_soon(leave_later, session.route[1].peer)
            here.kill(session.route[2].peer)

        async def leave_later(peer: PeerId) -> None:
            await trio.sleep(later_s)
            here.life_of(peer).stop.set()
            here.gone.add(peer)

        answer = await here.ask({5: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert not here.gone & {stage.peer for stage in answer.route}
        await here.check_nothing_is_left()


async def test_all_stages_of_a_route_may_leave_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3)) as here:

        def strike(session: RecoveringSession) -> None:
            for hop in range(3):
                leaving(here, hop)(session)

        answer = await here.ask({5: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert not here.gone & {stage.peer for stage in answer.route}
        await here.check_nothing_is_left()


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.006, 0.02, 0.05])
async def test_a_replica_that_is_lost_while_it_takes_over_costs_no_token(
    delay_s: float, autojump_clock: trio.abc.Clock
) -> None:
    """With another replica, that one goes on; the hand-over is one more thing that can fail."""
    async with swarm([*doubled(3), *cut(3)], latency_s=0.003) as here, trio.open_nursery() as tasks:

        def strike(session: RecoveringSession) -> None:
            leaving(here, 1)(session)
            tasks.start_soon(lose_who_takes, session)

        async def lose_who_takes(session: RecoveringSession) -> None:
            old = {hop.peer for hop in session.route}
            while True:
                await trio.sleep(0.001)
                for life in here.lives:
                    worker, peer = life.peer.worker, life.peer.transport.peer
                    if worker is not None and worker.sessions_open and peer not in old and life.stages[0].span.start:
                        await trio.sleep(delay_s)
                        here.kill(peer)
                        return

        answer = await here.ask({5: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        tasks.cancel_scope.cancel()
        await here.check_nothing_is_left()


async def test_a_full_replica_is_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with swarm([*doubled(3), *cut(3)]) as here:
        full: list[tuple[list[int], list[int]]] = []

        def strike(session: RecoveringSession) -> None:
            leaving(here, 1)(session)
            spares = [life for life in here.lives if life.stages[0].span == session.route[1].span]
            spare = next(life for life in spares if life.peer.transport.peer != session.route[1].peer)
            assert spare.peer.worker is not None
            rows = spare.peer.worker.room._free_rows
            full.append((rows, rows.copy()))
            rows.clear()

        answer = await here.ask({5: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert sum(recovery.replayed for recovery in answer.recoveries) == 0
        for rows, kept in full:
            rows.extend(kept)
        await here.check_nothing_is_left()


async def test_without_a_replica_an_answer_may_end_where_it_began(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(cut(3), cost_s=0.002) as here:
        answer = await here.ask({TOKENS - 10: leaving(here, 1)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert answer.recoveries == ()
        await here.check_nothing_is_left()


async def test_an_answer_that_ends_as_its_stage_leaves_leaves_no_row_at_the_replica(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(doubled(3)) as here:
        async with open_session(here.client, MODEL, LAYERS, Terms(SEEDED)) as session:
            await session.send(SendStep(0, PROMPT, "token"))
            await session.receive()
            leaving(here, 1)(session)
            await trio.sleep(1)
            heir = next(life for life in here.staying if life.stages[0].span == session.route[1].span)
            assert heir.peer.worker is not None
            assert session.id in heir.peer.worker._sessions
        await trio.sleep(1)
        await here.check_nothing_is_left()


async def test_many_sessions_are_handed_over_two_at_a_time(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = handover.give
    under_way: Counter[str] = Counter()

    async def counted(*arguments: Any) -> None:
        under_way["now"] += 1
        under_way["at most"] = max(under_way["now"], under_way["at most"])
        try:
            await give(*arguments)
        finally:
            under_way["now"] -= 1

    monkeypatch.setattr("p2pgrid.services.worker.worker.give", counted)
    async with swarm(doubled(3), rows=8) as here:
        answers = []

        async def ask(number: int) -> None:
            prompt = [(7 * i + number) % 256 for i in range(20)]
            async with open_session(here.client, MODEL, LAYERS, Terms(SEEDED)) as session:
                if session.route[1].peer != leaver:
                    return
                answer = await answer_of(session, generation(prompt, TOKENS))
            assert answer.token_ids == await alone(SEEDED, prompt, TOKENS)
            answers.append(answer)

        leaver = next(life.peer.transport.peer for life in here.lives if life.stages[0].span == cut(3)[1])
        async with trio.open_nursery() as clients:
            for number in range(12):
                clients.start_soon(ask, number)
            await trio.sleep(0.3)
            here.life_of(leaver).stop.set()
            here.gone.add(leaver)
        assert len(answers) > 2
        assert all(sum(recovery.replayed for recovery in answer.recoveries) == 0 for answer in answers)
        assert all(answer.recoveries for answer in answers)
        assert under_way["at most"] == HANDOVERS_AT_ONCE
        await here.check_nothing_is_left()


async def test_who_takes_over_knows_what_was_said_before(autojump_clock: trio.abc.Clock) -> None:
    calm = await alone(PUNISHED, max_tokens=TOKENS)
    unaware = await alone(
        msgspec.structs.replace(PUNISHED, presence_penalty=0.0, frequency_penalty=0.0), max_tokens=TOKENS
    )
    assert calm[10:] != unaware[10:]
    async with swarm(doubled(3)) as here:
        terms = Terms(PUNISHED, prompt=PROMPT)
        answer = await here.ask({9: leaving(here, 2)}, terms=terms)
        assert answer.token_ids == calm
        assert [recovery.replayed for recovery in answer.recoveries] == [0]


@pytest.mark.parametrize("after", [1, 9])
async def test_a_last_stage_that_takes_over_holds_the_answer_to_its_schema(
    after: int, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3), cost_s=0.01) as here:
        terms = Terms(SEEDED, prompt=PROMPT, json_schema=STRINGS)
        answer = await here.ask({after: leaving(here, 2)}, terms=terms)
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS, json_schema=STRINGS)
        assert [recovery.replayed for recovery in answer.recoveries] == [0]
        await here.check_nothing_is_left()
