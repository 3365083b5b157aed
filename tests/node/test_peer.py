"""What every participant is made of: which message goes where, and what a lost link means."""

import random
from contextlib import AsyncExitStack

import pytest
import trio

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import PeerUnavailable
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import Close, Failed, Token, ToStage
from tests.net.peers import identity, linked
from tests.swarm_kit import (
    GREEDY,
    MODEL,
    PROMPT,
    SEEDED,
    SESSION,
    WHOLE,
    CountedStage,
    a_step,
    alone,
    answer_of,
    contact_of,
    generation,
    hop_of,
    joined,
    open_chain,
    opening,
    serving,
    serving_advert,
)


@pytest.mark.parametrize("kind", ["open", "step", "close"])
async def test_who_serves_no_stage_cuts_off_whoever_asks_for_one(kind: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(()) as chain, chain.network.open(identity(1)) as transport, linked(transport) as asking:
        client = chain.client
        asked: dict[str, ToStage] = {
            "open": opening((hop_of(client, WHOLE),), 0),
            "step": a_step(0, PROMPT),
            "close": Close(SESSION),
        }
        await asking.links.connect(contact_of(client))
        await asking.links.send(client.transport.peer, asked[kind])
        await asking.loss()
        assert not client.links.is_up(asking.peer)


async def test_a_node_can_ask_through_its_own_stage(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain:
        asking = chain.peers[0]
        async with asking.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
            assert (await answer_of(session, generation())).token_ids == await alone(SEEDED)
        await trio.sleep(1)
        assert chain.rows_taken == [0, 0]


async def test_answers_go_to_the_pipeline_and_steps_to_the_stage(autojump_clock: trio.abc.Clock) -> None:
    """Two nodes that serve the whole model ask each other at once, over one link."""
    async with open_chain((WHOLE, WHOLE)) as chain:
        answers: list[list[int]] = []

        async def ask(asking: int, asked: int) -> None:
            route = (chain.route[asked],)
            async with chain.peers[asking].pipeline.open(MODEL, route, Terms(SEEDED)) as session:
                answers.append((await answer_of(session, generation())).token_ids)

        async with trio.open_nursery() as tasks:
            tasks.start_soon(ask, 0, 1)
            tasks.start_soon(ask, 1, 0)
        assert answers == [await alone(SEEDED)] * 2
        assert [len(peer.links.peers()) for peer in chain.peers] == [1, 1]


async def test_an_answer_for_nobody_does_no_harm(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, chain.network.open(identity(9)) as transport, linked(transport) as other:
        await other.links.connect(contact_of(chain.peers[0]))
        for _ in range(20):
            await other.links.send(chain.route[0].peer, Token(SESSION, 0, 0, 0))
            await other.links.send(chain.route[0].peer, Failed(SESSION, 0, 0, "of nothing"))
        await trio.sleep(1)
        assert chain.peers[0].links.is_up(other.peer)
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
            assert (await answer_of(session, generation())).token_ids == await alone()


async def test_a_lost_link_reaches_pipeline_stage_and_view(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain:
        node = chain.peers[0]  # stage 0 of one session and the client of another one
        other = chain.route[1].peer
        await chain.peers[1].discovery.publish(lambda: serving_advert(other))
        await node.discovery.refresh(MODEL)
        assert [advert.peer for advert in node.view.adverts(MODEL)] == [other]
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as through:
            with pytest.raises(PeerUnavailable, match="stage 1"):
                async with node.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as own:
                    chain.network.kill(other)
                    await own.receive()
            with pytest.raises(PeerUnavailable):
                await through.receive()
        assert node.view.adverts(MODEL) == []
        await trio.sleep(1)
        assert chain.workers[0].sessions_open == 0


async def test_a_peer_that_leaves_says_goodbye_to_those_who_wait_for_its_answer(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(()) as chain, AsyncExitStack() as leaving:
        peer = await leaving.enter_async_context(joined(chain.network, 1))
        await leaving.enter_async_context(serving(peer, CountedStage(WHOLE), InlineExecutor()))
        async with chain.client.pipeline.open(MODEL, (hop_of(peer, WHOLE),), Terms(GREEDY)) as session:
            await leaving.aclose()
            left_s = trio.current_time()
            with pytest.raises(PeerUnavailable, match=r"stage 0 \(layers 0:10 .*was lost: the peer said goodbye"):
                await session.receive()
            assert trio.current_time() - left_s < 0.1


@pytest.mark.parametrize("turns", range(12))
async def test_a_participant_that_is_cancelled_while_it_opens_is_gone(turns: int) -> None:
    network = MemoryNetwork(random.Random(1))
    opened = False
    with trio.fail_after(5):
        async with trio.open_nursery() as tasks:

            async def open_one() -> None:
                nonlocal opened
                async with joined(network, 1):
                    opened = True
                    await trio.sleep_forever()

            tasks.start_soon(open_one)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert opened or turns < 11
    async with joined(network, 1):
        pass  # its place is free again
