"""A client's way to a model: its description, a route, and another route when that one does not open."""

import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from p2pgrid.core.avoidance import AVOID_S_MIN
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import NoRoute, Overloaded, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import fetch_description, open_session, wait_for_route
from p2pgrid.node.peer import Peer
from p2pgrid.services.blobs import BlobServer
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.manifest import TokenizerData
from tests.net.peers import identity, linked
from tests.swarm_kit import (
    GREEDY,
    LAYERS,
    MODEL,
    SEEDED,
    WHOLE,
    CountedStage,
    Life,
    alone,
    answer_of,
    generation,
    joined,
    living,
    serving,
    serving_advert,
    wall,
)
from tests.toy_model import toy_manifest

TOKENIZER = TokenizerData(
    format=1,
    model="gpt2",
    pre="smollm",
    tokens=("a", "b"),
    kinds=(1, 1),
    merges=(),
    bos=None,
    eos=None,
    stops=(),
    add_bos=False,
    chat_template=None,
)


def digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


GOOD = toy_manifest(digest_of(TOKENIZER.to_bytes()), vocab=2, context=64)


@asynccontextmanager
async def describing(
    network: MemoryNetwork, number: int, model: ModelId, blobs: dict[str, bytes]
) -> AsyncIterator[Peer]:
    """A peer that says it serves `model` and gives these blobs for these digests, rightly or not."""
    async with joined(network, number) as peer:
        BlobServer(peer.transport, blobs.get)
        await peer.discovery.publish(lambda: serving_advert(peer.transport.peer, model=model))
        yield peer


def all_blobs() -> dict[str, bytes]:
    return {GOOD.id: GOOD.to_bytes(), digest_of(TOKENIZER.to_bytes()): TOKENIZER.to_bytes()}


# ── the description ──────────────────────────────────────────────────────────────────────────────────────


async def test_the_description_comes_from_a_peer_that_serves_the_model(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with describing(network, 1, GOOD.id, all_blobs()), joined(network, 900) as client:
        description = await fetch_description(client, GOOD.id)
        assert description.id == GOOD.id
        assert description.manifest == GOOD
        assert description.tokenizer == TOKENIZER


@pytest.mark.parametrize("first", ["lies", "has nothing", "lies about the tokenizer"])
async def test_a_peer_that_gives_a_false_description_is_passed_over(first: str, autojump_clock: trio.abc.Clock) -> None:
    wrong: dict[str, dict[str, bytes]] = {
        "lies": {GOOD.id: toy_manifest("0" * 64, vocab=2, context=64).to_bytes()},
        "has nothing": {},
        "lies about the tokenizer": all_blobs() | {digest_of(TOKENIZER.to_bytes()): b"{}"},
    }
    network = MemoryNetwork(random.Random(1))
    # Peers are asked in the order of their ids, so the first of these two is the one that does it wrongly.
    one, two = sorted((1, 2), key=lambda number: identity(number).peer)
    async with (
        describing(network, one, GOOD.id, wrong[first]),
        describing(network, two, GOOD.id, all_blobs()),
        joined(network, 900) as client,
    ):
        assert await client.discovery.wait_until(GOOD.id, lambda: len(client.view.adverts(GOOD.id)) == 2, 6)
        description = await fetch_description(client, GOOD.id)
        assert (description.manifest, description.tokenizer) == (GOOD, TOKENIZER)


async def test_a_model_that_nobody_serves_has_no_route(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with joined(network, 900) as client:
        started_s = trio.current_time()
        with pytest.raises(NoRoute, match=f"no node of the swarm serves model {GOOD.id[:12]}"):
            await fetch_description(client, GOOD.id)
        assert trio.current_time() - started_s == pytest.approx(client.settings.find_route_s_max)


async def test_a_description_of_a_later_format_is_one_line(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    later = b'{"format":2}'
    model = ModelId(digest_of(later))
    async with describing(network, 1, model, {model: later}), joined(network, 900) as client:
        with pytest.raises(PeerUnavailable, match="a way this version does not know") as raised:
            await fetch_description(client, model)
        assert "\n" not in str(raised.value)


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def swarm(*spans: Span, rows: int = 4) -> AsyncIterator[tuple[MemoryNetwork, Peer, list[Life]]]:
    """A client and serving nodes of these spans; node `i` has the identity `i`."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span, rows=rows))
            for number, span in enumerate(spans)
        ]
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == len(spans), 6)
        yield network, client, lives


async def ask(client: Peer, scope: str = "") -> list[int]:
    async with open_session(client, MODEL, LAYERS, Terms(SEEDED, cache_scope=scope)) as session:
        return (await answer_of(session, generation())).token_ids


def sessions(lives: list[Life]) -> list[int]:
    return [0 if life.peer.worker is None else life.peer.worker.sessions_open for life in lives]


FIRST, SECOND = Span(0, 5), Span(5, 10)


async def test_a_route_is_waited_for_until_it_is_there(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST) as (network, client, _), living(network, 50, SECOND) as late:
        hops = await wait_for_route(client, MODEL, LAYERS)
        assert "serving" in late.names
        assert [hop.span for hop in hops] == [FIRST, SECOND]
        assert await ask(client) == await alone(SEEDED)


async def test_no_route_names_the_missing_layers_when_the_wait_is_over(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(Span(0, 4), Span(6, 8)) as (_, client, _lives):
        started_s = trio.current_time()
        with pytest.raises(NoRoute, match=r"layers 4:6, 8:10 of 0:10 are missing"):
            await ask(client)
        waited_s = trio.current_time() - started_s
        assert waited_s == pytest.approx(client.settings.find_route_s_max, abs=0.1)


@pytest.mark.parametrize("gone", ["killed", "frozen"])
async def test_a_replica_takes_the_place_of_a_stage_that_is_gone(gone: str, autojump_clock: trio.abc.Clock) -> None:
    """The client's view still holds the lost one, and of equal replicas any may be tried first."""
    async with swarm(FIRST, SECOND, SECOND) as (network, client, lives):
        lost = lives[1].peer.transport.peer
        network.kill(lost) if gone == "killed" else network.freeze(lost, True)
        assert len(client.view.adverts(MODEL)) == 3
        for _ in range(4):
            started_s = trio.current_time()
            assert await ask(client) == await alone(SEEDED)
            assert trio.current_time() - started_s < (1 if gone == "killed" else 1 + LinkSettings().dial_s_max)
        await trio.sleep(1)
        assert sessions([lives[0], lives[2]]) == [0, 0]


@asynccontextmanager
async def mute_stage(network: MemoryNetwork, client: Peer) -> AsyncIterator[None]:
    """Known to the client for the second half: it takes the link and every opening, and says nothing."""
    async with network.open(identity(60)) as transport, linked(transport):
        mute = serving_advert(
            transport.peer,
            SECOND,
            addresses=transport.addresses,
            step_ms=0.0,
            sequence=1,
            expires_at_s=wall() + 60,
        )
        client.view.add(mute, identity(60).sign_advert(mute), wall())
        yield


async def test_a_stage_that_does_not_open_while_its_link_holds_is_busy_and_not_missing(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(FIRST) as (network, client, lives), mute_stage(network, client):
        started_s = trio.current_time()
        with pytest.raises(Overloaded, match=r"stage 1 .*was not open within 5 s"):
            await ask(client)
        waited_s = trio.current_time() - started_s
        assert waited_s < client.settings.open_patience_s + 2 * client.settings.open_s_max
        await trio.sleep(1)
        assert sessions(lives) == [0]


async def test_a_replica_takes_the_place_of_a_stage_that_never_opens(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND) as (network, client, lives), mute_stage(network, client):
        started_s = trio.current_time()
        assert await ask(client) == await alone(SEEDED)
        assert trio.current_time() - started_s > client.settings.open_s_max, "the mute one was tried"
        await trio.sleep(1)
        assert sessions(lives) == [0, 0]


async def test_a_busy_stage_is_left_for_a_replica(autojump_clock: trio.abc.Clock) -> None:
    async with (
        swarm(FIRST, SECOND, SECOND, rows=1) as (_, client, lives),
        open_session(client, MODEL, LAYERS, Terms(GREEDY)) as first,
        # The one stage of the first half is full as well: give it room.
        serving(lives[0].peer, CountedStage(FIRST), InlineExecutor()),
    ):
        started_s = trio.current_time()
        async with open_session(client, MODEL, LAYERS, Terms(SEEDED)) as second:
            assert second.route[1].peer != first.route[1].peer
            assert (await answer_of(second, generation())).token_ids == await alone(SEEDED)
        assert trio.current_time() - started_s < 1.0


async def test_when_all_are_busy_a_client_waits_its_turn(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(WHOLE, rows=1) as (_, client, lives):
        answers: list[list[int]] = []

        async def one() -> None:
            answers.append(await ask(client))

        async with trio.open_nursery() as tasks:
            for _ in range(6):
                tasks.start_soon(one)
        assert answers == [await alone(SEEDED)] * 6
        await trio.sleep(1)
        assert sessions(lives) == [0]


async def test_patience_with_busy_stages_ends(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(WHOLE, rows=1) as (_, client, lives):
        async with open_session(client, MODEL, LAYERS, Terms(GREEDY)):
            started_s = trio.current_time()
            with pytest.raises(Overloaded, match=r"stage 0 \(layers 0:10 .*has no room now"):
                await ask(client)
            assert trio.current_time() - started_s == pytest.approx(client.settings.open_patience_s, abs=3)
        await trio.sleep(1)
        assert sessions(lives) == [0]


async def chosen(client: Peer, scope: str) -> PeerId:
    """The one stage through which a session of that scope runs."""
    async with open_session(client, MODEL, LAYERS, Terms(SEEDED, cache_scope=scope)) as session:
        return session.route[0].peer


async def test_scopes_spread_over_equal_replicas_and_each_keeps_to_its_own(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(WHOLE, WHOLE, WHOLE) as (_, client, lives):
        assert len({await chosen(client, "the same every time") for _ in range(5)}) == 1
        counts = Counter([await chosen(client, f"scope {i}") for i in range(30)])
        assert set(counts) == {life.peer.transport.peer for life in lives}
        assert min(counts.values()) > 2


async def test_sessions_without_a_scope_spread_over_equal_replicas(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(WHOLE, WHOLE, WHOLE) as (_, client, lives):
        counts = Counter([await chosen(client, "") for _ in range(30)])
        assert set(counts) == {life.peer.transport.peer for life in lives}


async def test_a_peer_that_failed_is_left_alone_for_a_while_unless_it_is_the_only_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(FIRST, SECOND, SECOND) as (_, client, lives):
        failing, other = lives[1].peer.transport.peer, lives[2].peer.transport.peer

        def second_stages(**more: object) -> set[PeerId]:
            return {client.find_route(MODEL, LAYERS, **more)[1].peer for _ in range(30)}  # type: ignore[arg-type]

        assert second_stages() == {failing, other}
        client.avoidance.failed(failing, trio.current_time())
        assert second_stages() == {other}
        assert second_stages(prefer=[failing]) == {failing}, "it still holds the session"
        assert second_stages(avoid=[other]) == {failing}, "nobody else is left"
        client.avoidance.failed(failing, trio.current_time())
        assert second_stages() == {other}
        await trio.sleep(AVOID_S_MIN)
        assert second_stages() == {failing, other}


async def test_an_error_in_the_middle_closes_the_session(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(FIRST, SECOND) as (_, client, lives):
        with pytest.raises(ZeroDivisionError):
            async with open_session(client, MODEL, LAYERS, Terms(GREEDY)):
                assert sessions(lives) == [1, 1]
                raise ZeroDivisionError
        await trio.sleep(1)
        assert sessions(lives) == [0, 0]
