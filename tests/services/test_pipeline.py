"""The client side of the pipeline: against real stages, and against peers that say what the test has them say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.errors import Overloaded, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import SessionId
from p2pgrid.net.links import Delivery
from p2pgrid.services.pipeline import PipelineSession, Terms
from p2pgrid.settings import LinkSettings, PipelineSettings
from p2pgrid.wire.messages import (
    ROUTE_HOPS_MAX,
    Busy,
    Close,
    Contact,
    Failed,
    Hop,
    Lost,
    Moved,
    Open,
    Opened,
    OutOfSync,
    Sampling,
    Scores,
    Token,
)
from tests.net.peers import Node as LinkedNode
from tests.net.peers import identity, linked
from tests.swarm_kit import (
    CHUNK,
    GREEDY,
    MODEL,
    PROMPT,
    QUICK,
    SEEDED,
    SMALL_WINDOW,
    Chain,
    alone,
    answer_of,
    cut,
    generation,
    open_chain,
)

SILENCE_S = LinkSettings().silence_s_max


# ── closing ──────────────────────────────────────────────────────────────────────────────────────────────


class _Trouble(Exception):
    pass


async def _end_by(exit_by: str, chain: Chain) -> None:
    with trio.CancelScope() as scope:
        try:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                await session.send(SendStep(0, PROMPT, "token", until=60))
                await session.receive()
                if exit_by == "an error":
                    raise _Trouble
                if exit_by == "cancellation":
                    scope.cancel()
                    await trio.sleep_forever()
        except _Trouble:
            return


@pytest.mark.parametrize("exit_by", ["the end", "an error", "cancellation"])
async def test_a_session_is_closed_on_every_stage_however_it_ends(exit_by: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3, cost_s=0.05) as chain:
        await _end_by(exit_by, chain)
        await trio.sleep(1)
        assert chain.rows_taken == [0, 0, 0]
        assert [stage.released for stage in chain.stages] == [[0], [0], [0]]


@pytest.mark.parametrize("full", range(3))
async def test_a_route_with_a_full_stage_is_overloaded_and_closed_again(
    full: int, autojump_clock: trio.abc.Clock
) -> None:
    async with open_chain(3, rows=1) as chain:
        await chain.workers[full].drain(0.0)
        with pytest.raises(Overloaded) as raised:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)):
                pass
        assert raised.value.peer == chain.route[full].peer
        assert raised.value.retry_after_s > 0
        assert f"stage {full} (layers {chain.route[full].span}" in str(raised.value)
        await trio.sleep(1)
        assert [w.sessions_open for w in chain.workers] == [0, 0, 0]


async def test_a_stuck_stage_does_not_keep_the_others_from_hearing_the_end(autojump_clock: trio.abc.Clock) -> None:
    """Stage 0 is frozen and its window full, so that not even a Close fits; the client gives up."""
    async with open_chain(3, link_settings=SMALL_WINDOW) as chain:
        with trio.move_on_after(1.0):
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
                chain.network.freeze(chain.route[0].peer, True)
                while True:
                    await session.send(SendStep(0, PROMPT, "nothing"))
        await trio.sleep(1)
        assert chain.rows_taken[1:] == [0, 0]


# ── stages that go away ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["kill", "freeze"])
@pytest.mark.parametrize("lost", range(3))
async def test_a_stage_lost_in_mid_answer_is_named_in_time(lost: int, how: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3, cost_s=0.02) as chain:
        seen: list[int] = []
        lost_at_s = 0.0
        hop = chain.route[lost]

        def bytes_of(token: int) -> bytes:
            nonlocal lost_at_s
            seen.append(token)
            if len(seen) == 5:
                lost_at_s = trio.current_time()
                if how == "kill":
                    chain.network.kill(hop.peer)
                else:
                    chain.network.freeze(hop.peer, True)
            return b""

        with pytest.raises(PeerUnavailable) as raised:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                await answer_of(session, generation(max_tokens=40), bytes_of)
        ended_s = trio.current_time()
        assert ended_s - lost_at_s <= (1.0 if how == "kill" else SILENCE_S + 1.0)
        assert hop.peer in str(raised.value)
        assert f"layers {hop.span}" in str(raised.value)
        # A frozen stage may be noticed first by the one before it, which the client then takes to be at fault.
        assert raised.value.peer in (hop.peer, chain.route[lost - 1].peer)
        expected = await alone(SEEDED, max_tokens=40)
        assert 5 <= len(seen) < 40
        assert seen == expected[: len(seen)]
        await trio.sleep(SILENCE_S + 1)
        assert [taken for i, taken in enumerate(chain.rows_taken) if i != lost] == [0, 0]


async def test_a_slow_stage_is_not_called_dead(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2, cost_s=2 * SILENCE_S) as chain:
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
            answer = await answer_of(session, generation(max_tokens=3))
        assert answer.token_ids == await alone(SEEDED, max_tokens=3)


@pytest.mark.parametrize("gone", range(2))
async def test_a_stage_that_cannot_be_dialled_is_named(gone: int, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain:
        chain.network.kill(chain.route[gone].peer)
        with pytest.raises(PeerUnavailable, match=f"stage {gone} .*cannot be reached") as raised:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)):
                pass
        assert raised.value.peer == chain.route[gone].peer
        await trio.sleep(1)
        assert chain.workers[1 - gone].sessions_open == 0


async def test_a_sender_that_waits_for_room_hears_which_stage_was_lost(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2, link_settings=SMALL_WINDOW) as chain:
        with pytest.raises(PeerUnavailable, match=r"stage 0 \(layers 0:5") as raised:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
                chain.network.freeze(chain.route[0].peer, True)
                while True:
                    await session.send(SendStep(0, PROMPT, "nothing"))
        assert raised.value.peer == chain.route[0].peer


# ── peers that say what the test has them say ────────────────────────────────────────────────────────────


class Actors:
    """A client, and two peers that play the stages of its route."""

    def __init__(self, chain: Chain, stages: list[LinkedNode]) -> None:
        self.chain = chain
        self.stages = stages
        spans = cut(2)
        self.route = tuple(
            Hop(node.peer, span, node.transport.addresses) for node, span in zip(stages, spans, strict=True)
        )

    @property
    def session_id(self) -> SessionId:
        opening = self.stages[0].arrived[0][1]
        assert isinstance(opening, Open)
        return opening.session

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PipelineSession]:
        async with trio.open_nursery() as tasks:
            for hop in range(2):
                tasks.start_soon(self._welcome, hop)
            async with self.chain.client.pipeline.open(MODEL, self.route, Terms(Sampling())) as session:
                yield session

    async def say(self, hop: int, message: Token | Scores | OutOfSync | Failed | Busy | Opened | Moved) -> None:
        await self.stages[hop].links.send(self.chain.client.transport.peer, message)

    async def _welcome(self, hop: int) -> None:
        await self.stages[hop].arrival(1)
        opening = self.stages[hop].arrived[0][1]
        assert isinstance(opening, Open)
        await self.say(hop, Opened(opening.session, opening.epoch, opening.hop))


@asynccontextmanager
async def acting(settings: PipelineSettings = QUICK) -> AsyncIterator[Actors]:
    async with (
        open_chain((), pipeline_settings=settings) as chain,
        chain.network.open(identity(1)) as first,
        chain.network.open(identity(2)) as second,
        linked(first) as one,
        linked(second) as two,
    ):
        yield Actors(chain, [one, two])


async def test_only_the_last_stage_may_answer(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        await actors.say(0, Token(session.id, 0, 20, 111))
        await actors.say(0, Scores(session.id, 0, 20, b"", b""))
        await trio.sleep(1)
        await actors.say(1, Token(session.id, 0, 20, 222))
        assert await session.receive() == Token(session.id, 0, 20, 222)


async def test_answers_of_another_session_or_epoch_are_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        await actors.say(1, Token(SessionId("ab" * 16), 0, 20, 1))
        await actors.say(1, Token(session.id, 1, 20, 2))
        await actors.say(1, Failed(session.id, 1, 1, "of an epoch that is none"))
        await actors.say(1, Token(session.id, 0, 20, 3))
        assert await session.receive() == Token(session.id, 0, 20, 3)


async def test_a_stage_speaks_for_itself_alone(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        await actors.say(0, Failed(session.id, 0, 1, "said of another stage"))
        await actors.say(0, OutOfSync(session.id, 0, 1, 3))
        await actors.say(0, Busy(session.id, 0, 2**31 - 1, 1.0))
        await actors.say(1, Token(session.id, 0, 20, 3))
        assert await session.receive() == Token(session.id, 0, 20, 3)


async def test_answers_for_a_closed_session_are_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors:
        async with actors.open() as session:
            pass
        for message in (Token(session.id, 0, 20, 1), Failed(session.id, 0, 1, "late"), Opened(session.id, 0, 1)):
            await actors.say(1, message)
        await trio.sleep(1)
        assert actors.chain.client.links.is_up(actors.route[1].peer)
        assert [m for _, m in actors.stages[0].arrived if isinstance(m, Close)] == [Close(session.id)]
        assert [m for _, m in actors.stages[1].arrived if isinstance(m, Close)] == [Close(session.id)]


async def test_no_answer_is_an_error_when_the_allowed_time_is_over(autojump_clock: trio.abc.Clock) -> None:
    async with acting(PipelineSettings(prefill_chunk=CHUNK, token_s_max=7.0)) as actors, actors.open() as session:
        started_s = trio.current_time()
        with pytest.raises(PeerUnavailable, match="no token for 7 s") as raised:
            await session.receive()
        assert trio.current_time() - started_s == pytest.approx(7.0)
        assert raised.value.peer == actors.route[1].peer


async def test_a_stage_that_does_not_open_is_named_when_the_allowed_time_is_over(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with acting() as actors:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(actors._welcome, 0)
            started_s = trio.current_time()
            with pytest.raises(PeerUnavailable, match=r"stage 1 .*was not open within 5 s") as raised:
                async with actors.chain.client.pipeline.open(MODEL, actors.route, Terms(Sampling())):
                    pass
        assert trio.current_time() - started_s == pytest.approx(QUICK.open_s_max, abs=0.1)
        assert raised.value.peer == actors.route[1].peer
        await trio.sleep(0.1)
        assert [type(m) for _, m in actors.stages[1].arrived] == [Open, Close]


async def test_a_stage_out_of_step_ends_the_answer(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        await actors.say(0, OutOfSync(session.id, 0, 0, 5))
        with pytest.raises(PeerMisbehaved, match=r"stage 0 .*holds 5 positions"):
            await session.receive()
        with pytest.raises(PeerMisbehaved):
            await session.send(SendStep(0, PROMPT, "token"))


async def test_answers_that_came_before_the_end_are_still_received(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        await actors.say(1, Token(session.id, 0, 20, 3))
        await actors.say(1, Failed(session.id, 0, 1, "the node is leaving"))
        await trio.sleep(1)
        assert await session.receive() == Token(session.id, 0, 20, 3)
        with pytest.raises(PeerUnavailable, match=r"stage 1 \(layers 5:10 .*the node is leaving"):
            await session.receive()


async def test_a_stage_is_believed_about_the_next_one_alone(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        one, two = (stage.peer for stage in actors.route)
        await actors.say(0, Lost(session.id, 0, 0, one, "itself"))
        await actors.say(1, Lost(session.id, 0, 0, two, "in the other's name"))
        await actors.say(0, Lost(session.id, 1, 0, two, "in another epoch"))
        await actors.say(1, Token(session.id, 0, 20, 3))
        assert await session.receive() == Token(session.id, 0, 20, 3)
        await actors.say(1, Lost(session.id, 0, 1, one, "it was silent"))
        with pytest.raises(PeerUnavailable, match=r"stage 1 .* lost stage 0 .*: it was silent") as raised:
            await session.receive()
        assert raised.value.peer == one, "that is who is left out"


async def test_who_was_given_a_row_hears_the_end_although_nobody_went_on_there(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with acting() as actors, actors.chain.network.open(identity(3)) as third, linked(third) as heir:
        async with actors.open() as session:
            await actors.say(1, Moved(session.id, 0, 1, Hop(heir.peer, cut(2)[1], heir.transport.addresses)))
            with pytest.raises(PeerUnavailable, match="handed over"):
                await session.receive()
            assert not actors.chain.client.links.is_up(heir.peer)
        await heir.arrival(1)
        assert [message for _, message in heir.arrived] == [Close(session.id)]


async def test_a_stage_names_no_more_heirs_than_a_route_has_stages(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors, actors.open() as session:
        for number in range(ROUTE_HOPS_MAX + 10):
            await actors.say(1, Moved(session.id, 0, 1, Hop(identity(number + 10).peer, cut(2)[1])))
        await trio.sleep(1)
        assert len(session.holders.peers) == len(actors.route) + ROUTE_HOPS_MAX


async def test_what_is_for_a_stage_is_misbehaviour_at_a_client(autojump_clock: trio.abc.Clock) -> None:
    async with acting() as actors:
        delivery = Delivery(identity(1).peer, Close(SessionId("ab" * 16)), lambda: None)
        with pytest.raises(PeerMisbehaved, match="Close is not for a client"):
            await actors.chain.client.pipeline.on_message(delivery)
        await actors.stages[0].links.connect(
            Contact(actors.chain.client.transport.peer, actors.chain.client.transport.addresses)
        )
        await actors.stages[0].links.send(actors.chain.client.transport.peer, Close(SessionId("ab" * 16)))
        await actors.stages[0].loss()


@pytest.mark.parametrize("parts", [1, 2, 4])
async def test_a_client_that_relays_gets_the_same_answer(parts: int, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(parts) as chain:
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED, relayed=True)) as session:
            answer = await answer_of(session, generation(run_ahead=False))
        assert answer.token_ids == await alone(SEEDED)
        assert all(stage.links.peers() == [chain.client.transport.peer] for stage in chain.peers)


async def test_a_stage_lost_behind_a_relaying_client_is_named(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain:
        with pytest.raises(PeerUnavailable, match="stage 1 "):
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED, relayed=True)) as session:
                chain.network.kill(chain.route[1].peer)
                await answer_of(session, generation(run_ahead=False))
