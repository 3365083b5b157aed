"""A node that leaves its layers for others: when, how, and what becomes of its sessions."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2pgrid.core.rebalancing import Move
from p2pgrid.errors import NoRoute, Overloaded, PeerUnavailable
from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import open_session
from p2pgrid.node.moving import LOOK_S, Mover
from p2pgrid.node.node import MOVE_DRAIN_S_MAX
from p2pgrid.node.peer import Peer
from p2pgrid.node.recovering import RecoveringSession
from p2pgrid.services.pipeline import Terms
from tests.net.peers import identity
from tests.swarm_kit import (
    LAYERS,
    MODEL,
    SEEDED,
    Life,
    alone,
    answer_of,
    generation,
    hop_of,
    joined,
    living,
    serving_advert,
)

FIRST, SECOND = Span(0, 5), Span(5, 10)


@asynccontextmanager
async def swarm(*numbers: int, cost_s: float = 0.001) -> AsyncIterator[tuple[MemoryNetwork, Peer, list[Life]]]:
    """A client and nodes that chose halves of the model one after another."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(joined(network, 900))
        lives = []
        for number in numbers:
            lives.append(await stack.enter_async_context(living(network, number, span_max=5, cost_s=cost_s)))
            await lives[-1].reached("serving")
        yield network, client, lives


def held(life: Life) -> Span | None:
    return life.phases[-1][1]


async def first_moving(lives: Sequence[Life]) -> Life:
    """The first that leaves its layers."""
    found: list[Life] = []

    async def wait_for(life: Life) -> None:
        await life.reached("moving")
        found.append(life)
        tasks.cancel_scope.cancel()

    async with trio.open_nursery() as tasks:
        for life in lives:
            tasks.start_soon(wait_for, life)
    return found[0]


async def ask(client: Peer) -> list[int]:
    async with open_session(client, MODEL, LAYERS, Terms(SEEDED)) as session:
        return (await answer_of(session, generation())).token_ids


async def test_of_two_replicas_one_fills_the_gap_and_the_other_stays(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1, 2, 3) as (network, client, lives):
        assert [held(life) for life in lives] == [FIRST, SECOND, FIRST]
        assert await ask(client) == await alone(SEEDED)
        network.kill(lives[1].peer.transport.peer)
        lost_s = trio.current_time()
        moving = await first_moving(lives)
        staying = lives[2] if moving is lives[0] else lives[0]
        await moving.is_at("serving", SECOND)
        assert trio.current_time() - lost_s < 10
        assert moving.names[-5:] == ["serving", "moving", "building", "testing", "serving"]
        assert held(staying) == FIRST
        assert moving.stages[0].closed == 1
        assert await ask(client) == await alone(SEEDED)
        await trio.sleep(3 * LOOK_S[1])
        assert [len(staying.stages), len(moving.stages)] == [1, 2], "and there they stay"


async def test_a_node_that_was_told_its_layers_keeps_them(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1, 2) as (network, client, lives), living(network, 3, FIRST) as told:
        await told.reached("serving")
        network.kill(lives[0].peer.transport.peer)
        network.kill(lives[1].peer.transport.peer)
        await trio.sleep(3 * LOOK_S[1])
        assert told.names[-1] == "serving"
        assert held(told) == FIRST
        with pytest.raises(NoRoute, match="layers 5:10 of 0:10 are missing"):
            await ask(client)


async def test_a_node_moves_to_where_fewer_are_and_hands_its_sessions_over(autojump_clock: trio.abc.Clock) -> None:
    """Three nodes are told to hold the first half, one the second; one that may choose has come before them."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        free = await stack.enter_async_context(living(network, 1, span_max=5, cost_s=0.1))
        await free.reached("serving")
        assert held(free) == FIRST
        client = await stack.enter_async_context(joined(network, 900))
        told = []
        for number, span in enumerate([SECOND, FIRST, FIRST, FIRST], 2):
            told.append(await stack.enter_async_context(living(network, number, span, cost_s=0.1)))
            await told[-1].reached("serving")
        route = hop_of(free.peer, FIRST), hop_of(told[0].peer, SECOND)
        async with client.pipeline.open(MODEL, route, Terms(SEEDED)) as session:
            await free.reached("moving")
            left_s = trio.current_time()
            moved = RecoveringSession(client, MODEL, LAYERS, session, Terms(SEEDED))
            answer = await answer_of(moved, generation())
            assert answer.token_ids == await alone(SEEDED)
            assert [recovery.replayed for recovery in answer.recoveries] == [0]
        await free.is_at("serving", SECOND)
        assert trio.current_time() - left_s < MOVE_DRAIN_S_MAX
        assert free.stages[0].closed == 1


async def test_what_is_asked_of_a_node_on_its_way_is_refused_and_its_link_stays(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(1, 2, 3) as (network, client, lives):
        await ask(client)
        network.kill(lives[1].peer.transport.peer)
        moving = await first_moving(lives)
        await moving.is_at("building")
        assert moving.peer.worker is not None
        assert moving.peer.worker.room.sessions_free == 0
        old_route = (hop_of(moving.peer, FIRST), hop_of(moving.peer, SECOND))
        with pytest.raises((Overloaded, PeerUnavailable)):
            async with client.pipeline.open(MODEL, old_route, Terms(SEEDED)):
                pass
        assert client.links.is_up(moving.peer.transport.peer)


async def test_a_node_told_to_stop_on_its_way_leaves_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(1, 2, 3) as (network, _, lives):
        network.kill(lives[1].peer.transport.peer)
        moving = await first_moving(lives)
        await moving.is_at("building")
        stopped_s = trio.current_time()
        moving.stop.set()
        await moving.ended.wait()
        assert trio.current_time() - stopped_s < 0.5
        assert moving.names[-1] == "left"
        assert [stage.closed for stage in moving.stages] == [1] * len(moving.stages)


async def test_of_several_that_could_fill_a_gap_one_goes(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(1, 2, 3, 4, 5, 6) as (network, _, lives):
        seconds = [life for life in lives if held(life) == SECOND]
        assert len(seconds) == 3
        for life in seconds:
            network.kill(life.peer.transport.peer)
        await trio.sleep(2 * LOOK_S[1])
        moved = [life for life in lives if life not in seconds and len(life.stages) > 1]
        assert len(moved) == 1
        assert held(moved[0]) == SECOND


@pytest.mark.parametrize("theirs", ["lower", "higher"])
async def test_of_two_that_claim_a_gap_at_once_the_one_with_the_lower_id_goes(
    theirs: str, autojump_clock: trio.abc.Clock
) -> None:
    """The other one hears our claim in the moment in which it has made its own."""
    low, high = sorted((1, 2), key=lambda number: identity(number).peer)
    mine, other = (high, low) if theirs == "lower" else (low, high)
    network = MemoryNetwork(random.Random(1))
    async with joined(network, mine) as peer, joined(network, other) as rival, joined(network, 3) as third:
        claims: list[Span | None] = []
        own = peer.transport.peer

        async def publish() -> None:
            claims.append(mover.claim)
            await peer.discovery.publish(lambda: serving_advert(own, SECOND, span_max=5, moving_to=mover.claim))
            if mover.claim is not None:
                rivals = serving_advert(rival.transport.peer, SECOND, span_max=5, moving_to=FIRST)
                await rival.discovery.publish(lambda: rivals)

        mover = Mover(peer, MODEL, LAYERS, 5, publish)
        await rival.discovery.publish(lambda: serving_advert(rival.transport.peer, SECOND, span_max=5))
        await third.discovery.publish(lambda: serving_advert(third.transport.peer, SECOND))
        await peer.discovery.publish(lambda: serving_advert(own, SECOND, span_max=5))
        await trio.sleep(10)
        move = None
        with trio.move_on_after(8):
            move = await mover.next_move(SECOND)
        if theirs == "lower":
            assert move is None
            assert claims == [FIRST, None], "taken back, and not made again while the other one is on its way"
        else:
            assert move == Move(FIRST, urgent=True)
            assert claims == [FIRST]
