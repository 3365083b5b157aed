"""A node whose owner comes back: it leaves in the middle of an answer, holds nothing, and returns by itself."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2pgrid.core.owner_policy import OwnerTerms
from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import open_session
from p2pgrid.node.peer import Peer
from p2pgrid.node.recovering import RecoveringSession
from p2pgrid.services.owner_watch import OwnerWatch
from p2pgrid.services.pipeline import Terms
from tests.swarm_kit import (
    LAYERS,
    MODEL,
    SEEDED,
    WHOLE,
    Life,
    alone,
    answer_of,
    generation,
    joined,
    living,
    node_of,
)

TOKENS = 40
GONE_S = 20.0
FIRST, SECOND = Span(0, 5), Span(5, 10)


class Machine:
    """Of which other programs take so much."""

    def __init__(self) -> None:
        self.load = 0.0

    def watch(self) -> OwnerWatch:
        return OwnerWatch(OwnerTerms(0.3, gone_s=GONE_S), lambda: self.load)


@asynccontextmanager
async def swarm(*, cost_s: float, span: Span | None = SECOND) -> AsyncIterator[tuple[Machine, Life, list[Life], Peer]]:
    """A node whose owner may come back, others that hold both halves, and a client."""
    network, machine = MemoryNetwork(random.Random(1)), Machine()
    async with AsyncExitStack() as stack:
        others = []
        for number, held in enumerate([FIRST, SECOND], 2):
            others.append(await stack.enter_async_context(living(network, number, held, cost_s=cost_s)))
            await others[-1].reached("serving")
        yielding = await stack.enter_async_context(
            living(network, 1, span, span_max=5, cost_s=cost_s, owner_watch=machine.watch())
        )
        await yielding.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL, "serving")) == 3, 6)
        yield machine, yielding, others, client


async def ask_while(client: Peer, avoid: Life, strike: Callable[[], None]) -> RecoveringSession:
    """An answer through everybody but `avoid`; at its third token something happens. It must be the undisturbed one."""
    tokens = 0

    def bytes_of(token: int) -> bytes:
        nonlocal tokens
        tokens += 1
        if tokens == 3:
            strike()
        return b""

    route = client.find_route(MODEL, LAYERS, avoid=[avoid.peer.transport.peer])
    async with client.pipeline.open(MODEL, route, Terms(SEEDED)) as opened:
        session = RecoveringSession(client, MODEL, LAYERS, opened, Terms(SEEDED))
        answer = await answer_of(session, generation(max_tokens=TOKENS), bytes_of)
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert [recovery.replayed for recovery in answer.recoveries] == [0]
        return session


async def test_it_leaves_in_mid_answer_which_goes_on_at_a_replica_and_nothing_is_computed_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(cost_s=0.2) as (machine, yielding, others, client):

        def owner_comes() -> None:
            machine.load = 0.8

        session = await ask_while(client, others[1], owner_comes)
        assert [hop.peer for hop in session.route] == [life.peer.transport.peer for life in others]
        await yielding.is_at("away")
        assert yielding.names[-3:] == ["serving", "draining", "away"]
        assert yielding.stages[0].closed == 1, "its memory is free"


async def test_it_is_away_while_the_owner_is_there_and_comes_back_when_the_machine_was_quiet(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(cost_s=0.001) as (machine, yielding, _, client):
        machine.load = 0.8
        await yielding.is_at("away", SECOND)
        await trio.sleep(10 * GONE_S)
        assert yielding.names[-1] == "away"
        await client.discovery.refresh(MODEL)
        [said] = [a for a in client.view.adverts(MODEL) if a.peer == yielding.peer.transport.peer]
        assert (said.state, said.away, said.sessions_free) == ("draining", True, 0)
        machine.load = 0.1
        quiet_s = trio.current_time()
        await yielding.is_at("serving", SECOND)
        assert trio.current_time() - quiet_s >= GONE_S
        assert [stage.closed for stage in yielding.stages] == [1, 0]
        await client.discovery.refresh(MODEL)
        [said] = [a for a in client.view.adverts(MODEL) if a.peer == yielding.peer.transport.peer]
        assert (said.state, said.away) == ("serving", False)


async def test_when_it_comes_back_it_takes_what_the_swarm_lacks_by_then(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(cost_s=0.001, span=None) as (machine, yielding, others, client):
        before = yielding.phases[-1][1]
        machine.load = 0.8
        await yielding.is_at("away")
        assert yielding.phases[-1][1] is None
        lacking = others[1] if before == FIRST else others[0]
        wanted = SECOND if before == FIRST else FIRST
        lacking.stop.set()
        await lacking.ended.wait()
        machine.load = 0.0
        await yielding.is_at("serving", wanted)
        async with open_session(client, MODEL, LAYERS, Terms(SEEDED)) as session:
            assert (await answer_of(session, generation())).token_ids == await alone(SEEDED)


async def test_an_owner_who_comes_while_it_still_loads_is_not_kept_waiting(autojump_clock: trio.abc.Clock) -> None:
    network, machine = MemoryNetwork(random.Random(1)), Machine()
    machine.load = 0.8
    async with joined(network, 1) as peer, trio.open_nursery() as tasks:
        life = Life(peer)
        node = node_of(life, WHOLE, build_s=5.0, owner_watch=machine.watch())
        tasks.start_soon(node.run, life.stop)
        await life.is_at("away")
        assert "serving" not in life.names
        assert [stage.closed for stage in life.stages] == [1]
        life.stop.set()


@pytest.mark.parametrize("phase", ["draining", "away"])
async def test_told_to_stop_while_its_owner_is_there_it_leaves_in_order_and_soon(
    phase: str, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(cost_s=0.001) as (machine, yielding, _, _):
        machine.load = 0.8
        await yielding.is_at("draining" if phase == "draining" else "away")
        stopped_s = trio.current_time()
        yielding.stop.set()
        await yielding.ended.wait()
        assert trio.current_time() - stopped_s < 2.0
        assert yielding.names[-1] == "left"
        assert yielding.stages[0].closed == 1
