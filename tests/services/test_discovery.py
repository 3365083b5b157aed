"""Finding peers and being found, between real discoveries over the network in memory."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from p2pgrid.core.swarm_view import SwarmView
from p2pgrid.errors import PeerError
from p2pgrid.ids import PeerId, Span
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.memory_stream import MemoryStream
from p2pgrid.net.memory_transport import MemoryNetwork, MemoryTransport
from p2pgrid.net.transport import ByteStream
from p2pgrid.services.discovery import (
    DOUBT_S,
    EARLY_PAUSE_S,
    LOOK_UP_AFTER_LOSS_S,
    LOOK_UP_S_MAX,
    WITHDRAW_S_MAX,
    Discovery,
    provider_key,
)
from p2pgrid.settings import DiscoverySettings
from p2pgrid.wire.adverts import ADVERT_PROTOCOL, Advert, Adverts, Exchange, Lost, SignedAdvert
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.signing import Identity, open_advert
from tests.net.hostile import assert_survives, payloads
from tests.net.peers import identity
from tests.swarm_kit import MODEL, serving_advert, wall

TIMES = DiscoverySettings()


class Member:
    """One participant of discovery, and nothing else."""

    def __init__(self, own: Identity, transport: MemoryTransport, discovery: Discovery) -> None:
        self.identity = own
        self.transport = transport
        self.discovery = discovery

    @property
    def peer(self) -> PeerId:
        return self.transport.peer

    @property
    def contact(self) -> Contact:
        return Contact(self.peer, self.transport.addresses)

    @property
    def known(self) -> set[PeerId]:
        return {advert.peer for advert in self.discovery.view.adverts(MODEL)}

    def advert_of(self, other: "Member") -> Advert:
        return next(a for a in self.discovery.view.adverts(MODEL) if a.peer == other.peer)

    async def publish(self) -> None:
        await self.discovery.publish(lambda: serving_advert(self.peer))


@asynccontextmanager
async def joined(
    network: MemoryNetwork, number: int, has_link: Callable[[PeerId], bool] = lambda peer: False
) -> AsyncIterator[Member]:
    own = identity(number)
    async with network.open(own) as transport, trio.open_nursery() as tasks:
        rng = random.Random(number)
        discovery = Discovery(transport, SwarmView(), TIMES, identity=own, wall=wall, rng=rng, has_link=has_link)
        await tasks.start(discovery.run)
        yield Member(own, transport, discovery)
        tasks.cancel_scope.cancel()


class LossyTable(MemoryNetwork):
    """A DHT that drops the provider records of some peers and says nothing, as real ones do."""

    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self.dropped: set[PeerId] = set()
        self._dialled: list[tuple[PeerId, PeerId, float]] = []

    async def connect(self, dialler: MemoryTransport, peer: PeerId, protocol: str) -> MemoryStream:
        self._dialled.append((dialler.peer, peer, trio.current_time()))
        return await super().connect(dialler, peer, protocol)

    def dials(self, dialler: PeerId, peer: PeerId, since_s: float) -> int:
        return sum((a, b) == (dialler, peer) and at_s >= since_s for a, b, at_s in self._dialled)

    def write_record(self, key: str, contact: Contact) -> None:
        if contact.peer not in self.dropped:
            super().write_record(key, contact)


# ── finding each other ───────────────────────────────────────────────────────────────────────────────────


async def test_three_nodes_find_each_other_by_provider_records(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, joined(network, 3) as c:
        members = (a, b, c)
        for member in members:
            await member.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        for member in members:
            assert member.known == {other.peer for other in members} - {member.peer}
        assert a.advert_of(b).state == "serving"


async def test_a_client_that_publishes_nothing_finds_them_and_stays_unknown(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as client:
        await a.publish()
        found = await client.discovery.wait_until(MODEL, lambda: bool(client.known), 6)
        assert found
        assert client.known == {a.peer}
        await trio.sleep(30)
        assert a.known == set()


async def test_a_node_in_nobodys_provider_record_is_learned_from_others(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    network.dropped = {identity(3).peer}
    async with joined(network, 1) as a, joined(network, 2) as b, joined(network, 3) as c:
        for member in (a, b, c):
            await member.publish()
        await trio.sleep(3 * TIMES.refresh_s)
        assert c.peer not in {p.peer for p in network.read_records(provider_key(MODEL))}
        assert a.known == {b.peer, c.peer}
        assert b.known == {a.peer, c.peer}


async def test_models_do_not_mix(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    other = msgspec.structs.replace(serving_advert(identity(2).peer), model="cd" * 32)
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.discovery.publish(lambda: other)
        await trio.sleep(3 * TIMES.refresh_s)
        assert a.known == b.known == set()


async def test_waiting_ends_at_once_when_it_comes_true_and_at_the_deadline_when_not(
    autojump_clock: trio.abc.Clock,
) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        started_s = trio.current_time()
        assert not await a.discovery.wait_until(MODEL, lambda: bool(a.known), 3.0)
        assert trio.current_time() - started_s == pytest.approx(3.0)
        async with trio.open_nursery() as tasks:

            async def later() -> None:
                await trio.sleep(2)
                await b.publish()

            tasks.start_soon(later)
            assert await a.discovery.wait_until(MODEL, lambda: bool(a.known), 10.0)
        assert trio.current_time() - started_s < 3.0 + 2.0 + 2 * TIMES.refresh_eager_s


# ── what we say of ourselves ─────────────────────────────────────────────────────────────────────────────


async def test_address_peer_sequence_and_expiry_are_filled_in(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        await b.discovery.publish(lambda: serving_advert(identity(99).peer, Span(3, 7), step_ms=4.5))
        await a.discovery.refresh(MODEL)
        await a.publish()
        await trio.sleep(1)
        advert = a.advert_of(b)
        assert advert.peer == b.peer
        assert advert.addresses == b.transport.addresses
        assert advert.span == Span(3, 7)
        assert advert.step_ms == 4.5
        assert advert.sequence > 0
        assert wall() < advert.expires_at_s <= wall() + TIMES.advert_ttl_s


async def test_our_advert_is_signed_anew_long_before_it_expires(autojump_clock: trio.abc.Clock) -> None:
    async with joined(LossyTable(), 1) as a:
        assert a.discovery.own_advert() is None
        await a.publish()
        sequences: list[int] = []
        for _ in range(200):
            own = a.discovery.own_advert()
            assert own is not None
            advert, signed = own
            assert open_advert(signed) == advert
            assert advert.expires_at_s - wall() >= TIMES.advert_ttl_s - TIMES.advert_renew_s
            sequences.append(advert.sequence)
            await trio.sleep(1)
        assert sequences == sorted(sequences)
        assert 200 / TIMES.advert_renew_s - 2 <= len(set(sequences)) <= 200 / TIMES.advert_renew_s + 2


async def test_what_changed_is_published_at_once_with_a_higher_sequence(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.discovery.publish(lambda: serving_advert(b.peer, state="joining"))
        await trio.sleep(2 * TIMES.refresh_s)
        before = a.advert_of(b)
        assert before.state == "joining"
        await b.publish()
        assert a.advert_of(b).state == "serving"
        assert a.advert_of(b).sequence > before.sequence


async def test_after_a_restart_a_node_is_believed_again(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a:
        await a.publish()
        async with joined(network, 2) as b:
            await b.publish()
            await trio.sleep(2 * TIMES.refresh_s)
            assert a.known == {b.peer}
        await trio.sleep(2 * TIMES.refresh_s)
        assert a.known == set()
        async with joined(network, 2) as b:
            await b.publish()
            await trio.sleep(2 * TIMES.refresh_s)
            assert a.known == {b.peer}


async def test_a_withdrawal_is_heard_within_its_time(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, joined(network, 3) as c:
        for member in (a, b, c):
            await member.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        network.freeze(c.peer, True)  # nobody is held up by one that does not listen
        started_s = trio.current_time()
        await b.discovery.withdraw(serving_advert(b.peer, state="draining"))
        assert trio.current_time() - started_s <= WITHDRAW_S_MAX + 0.01
        assert a.advert_of(b).state == "draining"
        # Who did not hear of it, but asks, is told as well.
        reply: Adverts = await ask(
            a.transport, b.contact, ADVERT_PROTOCOL, Exchange(model=MODEL), Adverts, deadline_s=3
        )
        assert {open_advert(s).peer: open_advert(s).state for s in reply.adverts}[b.peer] == "draining"


# ── forgetting ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_dead_peer_is_forgotten_and_gossip_does_not_bring_it_back(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, joined(network, 3) as c:
        for member in (a, b, c):
            await member.publish()
        await trio.sleep(3 * TIMES.refresh_s)
        assert a.known == {b.peer, c.peer}
        stale = a.discovery.view.signed(MODEL)
        network.kill(c.peer)
        await a.discovery.refresh(MODEL)
        assert a.known == {b.peer}
        for _ in range(int(TIMES.advert_ttl_s)):
            await trio.sleep(1)
            # Somebody who has not noticed yet passes the old advert on.
            await ask(
                b.transport,
                a.contact,
                ADVERT_PROTOCOL,
                Exchange(model=MODEL, mine=tuple(stale)),
                Adverts,
                deadline_s=3,
            )
            assert c.peer not in a.known
        assert b.known == {a.peer}


async def test_a_frozen_peer_is_forgotten_and_comes_back_with_a_new_advert(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        network.freeze(b.peer, True)
        await trio.sleep(2 * TIMES.refresh_s + TIMES.exchange_s_max)
        assert a.known == set()
        network.freeze(b.peer, False)
        await trio.sleep(TIMES.advert_renew_s + 3 * TIMES.refresh_s)
        assert a.known == {b.peer}


async def test_an_advert_is_dropped_when_it_expires(autojump_clock: trio.abc.Clock) -> None:
    """Of a peer that nobody ever asks: it brings its advert once and is silent afterwards."""
    network = LossyTable()
    async with joined(network, 1) as a, network.open(identity(2)) as transport:
        advert = serving_advert(transport.peer, sequence=1, expires_at_s=wall() + 60)
        bring = Exchange(mine=(identity(2).sign_advert(advert),))
        contact = Contact(a.peer, a.transport.addresses)
        await ask(transport, contact, ADVERT_PROTOCOL, bring, Adverts, deadline_s=3)
        await trio.sleep(59)
        a.discovery.view.expire(wall())
        assert a.known == {transport.peer}
        await trio.sleep(1)
        await a.discovery.refresh(MODEL, look_up=False)
        assert a.known == set()
        await ask(transport, contact, ADVERT_PROTOCOL, bring, Adverts, deadline_s=3)
        assert a.known == set(), "an expired advert does not come back"


async def test_all_of_many_learn_of_a_death_that_few_could_notice(autojump_clock: trio.abc.Clock) -> None:
    """More peers than are asked in one round: who notices tells others, and they look for themselves."""
    network = LossyTable()
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(joined(network, number)) for number in range(30)]
        for member in members:
            await member.publish()
        await trio.sleep(6 * TIMES.refresh_s)
        dead = members[7]
        others = [member for member in members if member is not dead]
        assert all(dead.peer in member.known for member in others)
        network.kill(dead.peer)
        died_s = trio.current_time()
        while any(dead.peer in member.known for member in others):
            await trio.sleep(0.1)
            assert trio.current_time() - died_s < 4.0
        assert all(len(member.known) == 28 for member in others), "and of nobody else"


async def test_who_is_said_to_be_lost_is_asked_and_stays_when_it_answers(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, network.open(LIAR) as liar:
        await a.publish()
        await b.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        assert a.known == {b.peer}
        await trio.sleep(DOUBT_S)
        told_s = trio.current_time()
        for _ in range(50):
            lost = (Lost(b.peer, a.advert_of(b).sequence),)
            await ask(liar, a.contact, ADVERT_PROTOCOL, Exchange(lost=lost), Adverts, deadline_s=3)
            assert a.known == {b.peer}
            await trio.sleep(0.05)
        assert network.dials(a.peer, b.peer, since_s=told_s) <= 1 + 2.5 / DOUBT_S + 1, "it is not asked each time"


async def test_who_hears_of_losses_all_the_time_still_finds_newcomers(autojump_clock: trio.abc.Clock) -> None:
    """Nobody who knows the newcomer knows us: the DHT alone can tell."""
    network = LossyTable()
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(joined(network, number)) for number in (1, 2)]
        liar = await stack.enter_async_context(network.open(LIAR))
        tasks = await stack.enter_async_context(trio.open_nursery())

        async def lie() -> None:
            while True:
                lost = tuple(Lost(b.peer, a.advert_of(b).sequence) for _ in a.known)
                await ask(liar, a.contact, ADVERT_PROTOCOL, Exchange(lost=lost), Adverts, deadline_s=3)
                await trio.sleep(DOUBT_S / 4)

        for member in (a, b):
            await member.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        tasks.start_soon(lie)
        await trio.sleep(2 * TIMES.refresh_s)
        newcomer = await stack.enter_async_context(network.open(identity(3)))
        await newcomer.announce(provider_key(MODEL))
        asked = trio.Event()

        async def say_nothing(stream: ByteStream) -> None:
            if stream.peer == a.peer:
                asked.set()

        newcomer.serve(ADVERT_PROTOCOL, say_nothing)
        with trio.fail_after(LOOK_UP_S_MAX + 3 * TIMES.refresh_s):
            await asked.wait()
        tasks.cancel_scope.cancel()


async def test_a_peer_whose_link_broke_is_known_again_at_once_when_it_lives(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        a.discovery.lost(b.peer)
        assert a.known == set()
        await trio.sleep(EARLY_PAUSE_S[1] + 0.1)
        assert a.known == {b.peer}


async def test_a_peer_with_whom_a_link_stands_is_not_forgotten_for_a_missed_exchange(
    autojump_clock: trio.abc.Clock,
) -> None:
    network = LossyTable()
    async with joined(network, 1, has_link=lambda peer: True) as a, joined(network, 2) as b:
        await a.publish()
        await b.publish()
        await trio.sleep(2 * TIMES.refresh_s)
        network.freeze(b.peer, True)
        await trio.sleep(3 * TIMES.refresh_s)
        assert a.known == {b.peer}


async def test_an_answer_has_only_what_the_asker_does_not_know(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, joined(network, 3) as c, network.open(LIAR) as asker:
        for member in (a, b, c):
            await member.publish()
        await trio.sleep(2 * TIMES.refresh_s)

        async def told(known: bytes) -> set[PeerId]:
            request = Exchange(model=MODEL, known=known)
            reply: Adverts = await ask(asker, a.contact, ADVERT_PROTOCOL, request, Adverts, deadline_s=3)
            return {open_advert(signed).peer for signed in reply.adverts}

        assert await told(b"") == {a.peer, b.peer, c.peer}
        tags = a.discovery.view.tags(MODEL, 99)
        assert await told(tags) == {a.peer}
        await b.discovery.publish(lambda: serving_advert(b.peer, Span(0, 5)))
        assert await told(tags) == {a.peer, b.peer}, "news of a peer that was known"


async def test_what_changed_in_our_load_is_heard_by_whoever_asks_next(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    queue_ms = 1.0
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.discovery.publish(lambda: serving_advert(b.peer, queue_ms=queue_ms))
        queue_ms = 7.0
        await a.discovery.refresh(MODEL)
        assert a.advert_of(b).queue_ms == 1.0
        b.discovery.renew()
        await a.discovery.refresh(MODEL)
        assert a.advert_of(b).queue_ms == 7.0


# ── liars ────────────────────────────────────────────────────────────────────────────────────────────────

LIAR = identity(66)
VICTIM = identity(67)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _of_victim() -> Advert:
    return serving_advert(VICTIM.peer, sequence=9, expires_at_s=wall() + 60)


FORGERIES: dict[str, Callable[[], SignedAdvert]] = {
    "signed by another key": lambda: LIAR.sign_advert(_of_victim()),
    "another key under a signature": lambda: msgspec.structs.replace(
        VICTIM.sign_advert(_of_victim()), public_key=LIAR.public_key
    ),
    "a flipped byte in the advert": lambda: msgspec.structs.replace(
        (s := VICTIM.sign_advert(_of_victim())), advert=flipped(s.advert, len(s.advert) // 2)
    ),
    "a flipped byte in the signature": lambda: msgspec.structs.replace(
        (s := VICTIM.sign_advert(_of_victim())), signature=flipped(s.signature, 5)
    ),
    "no advert at all": lambda: SignedAdvert(b"\xc1", VICTIM.public_key, bytes(64)),
    "layers that the model does not have": lambda: VICTIM.sign_advert(
        msgspec.structs.replace(_of_victim(), span=Span(0, 11))
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_who_brings_a_forged_advert_is_forgotten_and_none_of_what_it_brought_counts(
    forgery: str, autojump_clock: trio.abc.Clock
) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b, network.open(LIAR) as liar:
        await a.publish()
        await b.publish()
        await trio.sleep(TIMES.refresh_s)
        genuine = serving_advert(identity(3).peer, sequence=1, expires_at_s=wall() + 60)
        honest_face = LIAR.sign_advert(serving_advert(LIAR.peer, sequence=1, expires_at_s=wall() + 60))
        brought = (identity(3).sign_advert(genuine), FORGERIES[forgery]())

        async def lie(request: Exchange) -> Adverts:
            return Adverts(brought)

        async def serve_lies(stream: ByteStream) -> None:
            await answer(stream, Exchange, lie, deadline_s=3)

        liar.serve(ADVERT_PROTOCOL, serve_lies)
        await ask(liar, a.contact, ADVERT_PROTOCOL, Exchange(mine=(honest_face,)), Adverts, deadline_s=3)
        assert a.known == {b.peer, LIAR.peer}
        await a.discovery.refresh(MODEL)
        assert a.known == {b.peer}
        with pytest.raises(PeerError):
            await ask(liar, a.contact, ADVERT_PROTOCOL, Exchange(mine=brought), Adverts, deadline_s=3)
        assert a.known == {b.peer}


async def test_an_advert_of_ourselves_that_others_bring_is_not_taken(autojump_clock: trio.abc.Clock) -> None:
    network = LossyTable()
    async with joined(network, 1) as a, network.open(LIAR) as liar:
        old = a.identity.sign_advert(serving_advert(a.peer, sequence=1, expires_at_s=wall() + 60))
        await ask(liar, a.contact, ADVERT_PROTOCOL, Exchange(mine=(old,)), Adverts, deadline_s=3)
        assert a.known == set()


@given(payloads=payloads())
@settings(max_examples=50, deadline=None)
def test_no_bytes_hurt_a_discovery(payloads: list[bytes]) -> None:
    async def main() -> None:
        network = LossyTable()
        async with joined(network, 1) as a, joined(network, 2) as b, network.open(identity(70)) as rogue:
            await a.publish()
            await assert_survives(a.transport, rogue, ADVERT_PROTOCOL, payloads)
            assert await b.discovery.wait_until(MODEL, lambda: b.known == {a.peer}, 6)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_the_dht_is_asked_ever_less_often_while_it_tells_no_news(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_s: list[float] = []
    find_providers = MemoryTransport.find_providers

    async def find(transport: MemoryTransport, key: str) -> list[Contact]:
        if transport.peer == identity(1).peer:
            asked_s.append(trio.current_time())
        return await find_providers(transport, key)

    monkeypatch.setattr(MemoryTransport, "find_providers", find)
    network = LossyTable()
    async with joined(network, 1) as a, joined(network, 2) as b:
        await a.publish()
        await b.publish()
        await trio.sleep(1000)
        pauses = [after - before for before, after in pairwise(asked_s)]
        assert len(pauses) < 1000 / LOOK_UP_S_MAX + 8
        assert LOOK_UP_S_MAX <= pauses[-1] <= LOOK_UP_S_MAX + 2 * TIMES.refresh_s
        asked_s.clear()
        network.kill(b.peer)
        a.discovery.lost(b.peer)
        await trio.sleep(LOOK_UP_AFTER_LOSS_S[0])
        assert not asked_s, "not at the moment of a loss, when others have more to do"
        await trio.sleep(LOOK_UP_AFTER_LOSS_S[1])
        assert asked_s, "but soon after: somebody may have come in the lost one's place"
