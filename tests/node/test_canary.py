"""Tokens that are sent through whole routes, so that a model is called ready only when it answers."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2pgrid.core.health import CANARY_EVERY_S, CANARY_S_MAX, Health, health
from p2pgrid.errors import NoRoute, PeerUnavailable
from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.canary import ANSWER_S_MAX, send_canary
from p2pgrid.node.client import open_session
from p2pgrid.node.peer import Peer
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import DiscoverySettings
from tests.swarm_kit import LAYERS, MODEL, SEEDED, Life, alone, answer_of, generation, joined, living

FIRST, SECOND = Span(0, 5), Span(5, 10)
HEARD_S_MAX = 4 * DiscoverySettings().refresh_s
"""By then all know each other, a token went through, and all know of that."""


@asynccontextmanager
async def swarm(*spans: Span, cost_s: float = 0.001) -> AsyncIterator[tuple[MemoryNetwork, Peer, list[Life]]]:
    """Serving nodes of these spans, and somebody who only looks."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span, cost_s=cost_s))
            for number, span in enumerate(spans)
        ]
        for life in lives:
            await life.reached("serving")
        watcher = await stack.enter_async_context(joined(network, 900))
        watcher.discovery.interests.add(MODEL)
        assert await watcher.discovery.wait_until(MODEL, lambda: len(watcher.view.adverts(MODEL)) == len(spans), 6)
        yield network, watcher, lives


def seen_by(watcher: Peer) -> Health:
    return health(watcher.view.adverts(MODEL), LAYERS, watcher.discovery.now_s())


def tokens(life: Life) -> int:
    """Steps that the stage has computed since its self-test."""
    return sum(life.stages[-1].batches) - 2 * life.stages[-1].rows


async def watch(watcher: Peer, seconds: float) -> set[str]:
    """Every state in which the model is seen meanwhile."""
    states = set()
    end_s = trio.current_time() + seconds
    while trio.current_time() < end_s:
        await trio.sleep(0.5)
        await watcher.discovery.refresh(MODEL, look_up=False)
        states.add(seen_by(watcher).state)
    return states


async def test_a_model_becomes_ready_soon_and_stays_so_without_anybody_asking(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND, FIRST, SECOND) as (_, watcher, lives):
        await trio.sleep(HEARD_S_MAX)
        assert await watch(watcher, 300) == {"ready"}
        sent = sum(tokens(life) for life in lives if life.phases[-1][1] == FIRST)
        assert 300 / CANARY_S_MAX < sent <= 4 + (300 + HEARD_S_MAX) / CANARY_EVERY_S, "one a while, not one a node"


async def test_without_replicas_it_is_degraded_and_says_why(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND) as (_, watcher, _lives):
        await trio.sleep(HEARD_S_MAX)
        assert seen_by(watcher).reasons == ("layers 0:10 are served by one node only",)


async def test_a_token_of_a_user_is_as_good_and_a_busy_swarm_gets_no_others(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND, cost_s=1.0) as (_, watcher, lives):
        async with open_session(watcher, MODEL, LAYERS, Terms(SEEDED)) as session:
            answer = await answer_of(session, generation(max_tokens=40))
            assert answer.token_ids == await alone(SEEDED, max_tokens=40)
            own = tokens(lives[0])
            await watcher.discovery.refresh(MODEL)
            age_s = seen_by(watcher).canary_age_s
            assert age_s is not None
            assert age_s < 15
        assert own <= 40


async def test_a_model_through_which_no_token_comes_is_not_ready_though_all_say_that_they_serve(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The stages of the second half drop whatever they are sent."""
    async with swarm(FIRST, SECOND, FIRST, SECOND) as (_, watcher, lives):
        for life in lives[1::2]:
            worker = life.peer.worker
            assert worker is not None
            worker._loop.put = lambda seat, delivery, step: delivery.release()  # type: ignore[method-assign]
        await trio.sleep(CANARY_S_MAX + HEARD_S_MAX)
        found = seen_by(watcher)
        assert found.state == "degraded"
        assert found.reasons == ("no token is known to have gone through a whole route in the last 60 s",)
        assert {advert.state for advert in watcher.view.adverts(MODEL)} == {"serving"}, "nobody is less ready for it"
        with pytest.raises(PeerUnavailable, match="no token came through"):
            await send_canary(watcher, MODEL, LAYERS)
        await trio.sleep(ANSWER_S_MAX)


async def test_when_the_one_whose_turn_it_is_falls_silent_the_next_one_sends_it(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND, FIRST, SECOND, FIRST) as (network, watcher, lives):
        await trio.sleep(HEARD_S_MAX)
        first = min(life.peer.transport.peer for life in lives if life.phases[-1][1] == FIRST)
        network.kill(first)
        assert "unavailable" not in await watch(watcher, 2 * CANARY_S_MAX)
        assert seen_by(watcher).state == "ready"


async def test_nobody_sends_a_token_into_a_gap(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST) as (_, watcher, lives):
        await trio.sleep(CANARY_S_MAX)
        assert tokens(lives[0]) == 0
        assert lives[0].names[-1] == "serving"
        with pytest.raises(NoRoute, match="layers 5:10 of 0:10 are missing"):
            await send_canary(watcher, MODEL, LAYERS)


@pytest.mark.parametrize("gone", ["killed", "frozen"])
async def test_the_loss_of_the_last_copy_of_a_layer_is_known_within_10_s(
    gone: str, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(FIRST, SECOND, FIRST) as (network, watcher, lives):
        await trio.sleep(HEARD_S_MAX)
        lost = lives[1].peer.transport.peer
        network.kill(lost) if gone == "killed" else network.freeze(lost, True)
        lost_s = trio.current_time()
        while seen_by(watcher).state != "unavailable":
            await trio.sleep(0.1)
            assert trio.current_time() - lost_s < 10
        assert seen_by(watcher).missing == (SECOND,)
        for node in (lives[0], lives[2]):
            while health(node.peer.adverts(MODEL), LAYERS, watcher.discovery.now_s()).missing != (SECOND,):
                await trio.sleep(0.1)
                assert trio.current_time() - lost_s < 10
        with pytest.raises(NoRoute, match="layers 5:10 of 0:10 are missing"):
            async with open_session(watcher, MODEL, LAYERS, Terms(SEEDED)):
                pass
        assert trio.current_time() - lost_s < 10 + watcher.settings.find_route_s_max
