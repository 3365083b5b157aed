"""Connections of their own for links: made, refused, fallen back from, and given back, on loopback."""

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.libp2p_transport import direct as module
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.net.libp2p_transport.direct import (
    STREAMS_PER_PEER_MAX,
    DirectDialler,
    DirectListener,
    open_direct_listener,
)
from p2pgrid.net.libp2p_transport.noise_stream import PIECE_BYTES_MAX, Handshakes, NoiseStream
from p2pgrid.net.libp2p_transport.transport import Libp2pStream
from p2pgrid.net.libp2p_transport.wire import BufferedTcpStream
from p2pgrid.net.transport import ByteStream, StreamHandler, Transport
from p2pgrid.wire.messages import STAGE_PROTOCOL, Contact
from p2pgrid.wire.transfer_messages import DIRECT_PROTOCOL, DirectOffer, DirectRequest
from tests.net.peers import identity, linked, step, token

HOST = "127.0.0.1"
ECHO = "/p2pgrid/echo-for-tests/1"


def contact(transport: Transport) -> Contact:
    return Contact(transport.peer, transport.addresses)


async def echo(stream: ByteStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def is_echoed(stream: ByteStream, data: bytes = b"hello") -> bool:
    await stream.send_all(data)
    return await read_exactly(stream, len(data)) == data


async def read_exactly(stream: ByteStream, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        more = await stream.receive_some()
        assert more, f"the stream ended after {len(data)} of {nbytes} bytes"
        data += more
    return bytes(data)


# ── through the transport ────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def hosts(*, direct: bool = True) -> AsyncIterator[tuple[Transport, Transport]]:
    """The first serves an echo where links are served, and offers direct connections if it may."""
    async with (
        open_libp2p(identity(1), [], [], dht_server=True, direct=direct) as one,
        open_libp2p(identity(2), [], one.addresses, dht_server=False) as other,
    ):
        one.serve(STAGE_PROTOCOL, echo)
        yield one, other


@asynccontextmanager
async def opened(transport: Transport, there: Contact, protocol: str = STAGE_PROTOCOL) -> AsyncIterator[ByteStream]:
    stream = await transport.open_stream(there, protocol)
    try:
        yield stream
    finally:
        await stream.aclose()


async def offer_of(there: Transport, asker: Transport, protocol: str) -> DirectOffer:
    request = DirectRequest(protocol)
    offer = await ask(asker, contact(there), DIRECT_PROTOCOL, request, DirectOffer, deadline_s=2.0)
    assert isinstance(offer, DirectOffer)
    return offer


def always_offer(offer: DirectOffer) -> StreamHandler:
    async def handle(stream: ByteStream) -> None:
        async def say(_: DirectRequest) -> DirectOffer:
            await trio.lowlevel.checkpoint()
            return offer

        await answer(stream, DirectRequest, say, deadline_s=2.0)

    return handle


async def test_a_link_gets_a_connection_of_its_own() -> None:
    async with hosts() as (one, other), opened(other, contact(one)) as stream:
        assert isinstance(stream, NoiseStream)
        assert stream.peer == one.peer
        assert await is_echoed(stream, os.urandom(300_000))


async def test_other_protocols_share_the_connection_of_libp2p() -> None:
    async with hosts() as (one, other):
        one.serve(ECHO, echo)
        async with opened(other, contact(one), ECHO) as stream:
            assert isinstance(stream, Libp2pStream)
        assert await offer_of(one, other, ECHO) == DirectOffer(0)
        assert await offer_of(one, other, "/p2pgrid/unheard-of/1") == DirectOffer(0)


async def test_links_carry_messages_both_ways_over_it() -> None:
    async with (
        open_libp2p(identity(1), [], [], dht_server=True) as a,
        open_libp2p(identity(2), [], a.addresses, dht_server=False) as b,
        linked(a) as one,
    ):
        async with linked(b) as other:
            await other.links.connect(one.contact)
            (link,) = other.links._links.values()
            assert isinstance(link._stream, NoiseStream)
            for position in range(20):
                await one.links.send(other.peer, step(200_000, position))
                await other.links.send(one.peer, token(position))
            with trio.fail_after(10):
                await other.arrival(20)
                await one.arrival(20)
            assert [m.position for _, m in other.arrived] == list(range(20))  # type: ignore[union-attr]
            assert one.positions(other.peer) == list(range(20))
            assert not one.lost
        with trio.fail_after(5):
            await one.loss()
        assert "goodbye" in one.lost[0][1]


async def test_a_peer_that_offers_none_gets_a_stream_over_libp2p_and_is_not_asked_again() -> None:
    async with hosts(direct=False) as (one, other):
        async with opened(other, contact(one)) as stream:
            assert isinstance(stream, Libp2pStream)
            assert await is_echoed(stream)
        assert not other._direct.may_try(one.peer)  # type: ignore[attr-defined]


async def test_a_peer_behind_announced_addresses_offers_none_but_takes_offers() -> None:
    outside = ["/ip4/192.0.2.1/tcp/4001"]
    async with (
        open_libp2p(identity(1), [], [], dht_server=True, announce=outside) as one,
        open_libp2p(identity(2), [], [], dht_server=False) as other,
    ):
        one.serve(STAGE_PROTOCOL, echo)
        other.serve(STAGE_PROTOCOL, echo)
        async with opened(one, contact(other)) as stream:
            assert isinstance(stream, NoiseStream)
        async with opened(other, Contact(one.peer)) as stream:
            assert isinstance(stream, Libp2pStream)


@pytest.mark.parametrize("listening", [True, False], ids=["a mute port", "a closed port"])
async def test_an_offer_that_leads_nowhere_costs_no_link(listening: bool) -> None:
    with socket.socket() as there:
        there.bind((HOST, 0))
        if listening:
            there.listen()
        async with hosts() as (one, other):
            one.serve(DIRECT_PROTOCOL, always_offer(DirectOffer(there.getsockname()[1], bytes(16))))
            async with opened(other, contact(one)) as stream:
                assert isinstance(stream, Libp2pStream)
                assert await is_echoed(stream)
            assert not other._direct.may_try(one.peer)  # type: ignore[attr-defined]


async def test_another_peer_at_the_port_is_refused_and_costs_no_link() -> None:
    async with hosts() as (one, other), impostor() as port:
        one.serve(DIRECT_PROTOCOL, always_offer(DirectOffer(port, bytes(16))))
        async with opened(other, contact(one)) as stream:
            assert isinstance(stream, Libp2pStream)
            assert await is_echoed(stream)


@asynccontextmanager
async def impostor() -> AsyncIterator[int]:
    """Somebody else who takes every token."""

    async def take(tcp: trio.SocketStream) -> None:
        async with tcp:
            try:
                stream = await Handshakes(identity(9)).respond(tcp)
                await stream.send_all(await stream.receive_some())
                await stream.receive_some()
            except (PeerMisbehaved, PeerUnavailable):
                return

    async with trio.open_nursery() as tasks:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        tasks.start_soon(trio.serve_listeners, take, [listener])
        yield listener.socket.getsockname()[1]
        tasks.cancel_scope.cancel()


async def test_a_peer_that_has_gone_is_not_taken_for_one_without_a_port() -> None:
    async with open_libp2p(identity(2), [], [], dht_server=False) as other:
        async with open_libp2p(identity(1), [], [], dht_server=True) as one:
            one.serve(STAGE_PROTOCOL, echo)
            address = one.addresses[0].split("/p2p/")[0]
            async with opened(other, contact(one)):
                pass
        with pytest.raises(PeerUnavailable):
            await other.open_stream(contact(one), STAGE_PROTOCOL)
        async with open_libp2p(identity(1), [address], [], dht_server=True) as one:
            one.serve(STAGE_PROTOCOL, echo)
            async with opened(other, contact(one)) as stream:
                assert isinstance(stream, NoiseStream)


async def test_a_handler_that_fails_resets_its_connection_and_hurts_nobody() -> None:
    async def fail(stream: ByteStream) -> None:
        await stream.receive_some()
        raise PeerUnavailable("on purpose")

    async with hosts() as (one, other):
        one.serve(STAGE_PROTOCOL, fail)
        async with opened(other, contact(one)) as stream:
            await stream.send_all(b"x")
            with trio.fail_after(2), pytest.raises(PeerUnavailable):
                await stream.receive_some()
        one.serve(STAGE_PROTOCOL, echo)
        async with opened(other, contact(one)) as stream:
            assert isinstance(stream, NoiseStream)
            assert await is_echoed(stream)


# ── the listener by itself ───────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def listening() -> AsyncIterator[DirectListener]:
    async with open_direct_listener(identity(1), [HOST], {STAGE_PROTOCOL: echo, ECHO: echo}) as listener:
        yield listener


def offered(listener: DirectListener, number: int) -> DirectOffer:
    offer = listener.offer(identity(number).peer, STAGE_PROTOCOL, HOST)
    assert offer.port
    return offer


async def comes(number: int, offer: DirectOffer, to: int = 1) -> bool:
    """Whether that peer is let in with that offer. Raises what the dialler raises when it is not."""
    stream = await DirectDialler(identity(number)).dial(identity(to).peer, offer, [HOST])
    try:
        return await is_echoed(stream)
    finally:
        await stream.aclose()


async def test_a_token_is_good_for_one_connection_of_the_peer_that_asked() -> None:
    async with listening() as listener:
        offer = offered(listener, 2)
        offered(listener, 3)
        wrong = DirectOffer(offer.port, bytes(16))
        for number, bad in ((2, wrong), (3, offer)):
            with pytest.raises(PeerUnavailable):
                await comes(number, bad)
        assert await comes(2, offer), "somebody else's try has not used it up"
        with pytest.raises(PeerUnavailable):
            await comes(2, offer)


async def test_a_token_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as listener:
        monkeypatch.setattr(module, "TOKEN_S", 0.05)
        old = offered(listener, 2)
        await trio.sleep(0.06)
        with pytest.raises(PeerUnavailable):
            await comes(2, old)


async def test_the_dialler_insists_on_the_peer_it_dials() -> None:
    async with listening() as listener:
        with pytest.raises(PeerMisbehaved, match="peer id"):
            await comes(2, offered(listener, 2), to=9)


async def test_one_peer_gets_few_offers_and_they_count_its_streams() -> None:
    async with listening() as listener:
        dialler = DirectDialler(identity(2))
        streams = [
            await dialler.dial(identity(1).peer, offered(listener, 2), [HOST]) for _ in range(STREAMS_PER_PEER_MAX)
        ]
        assert listener.offer(identity(2).peer, STAGE_PROTOCOL, HOST) == DirectOffer(0)
        offered(listener, 3)
        for stream in streams:
            await stream.aclose()
        with trio.fail_after(2):
            while True:
                if listener.offer(identity(2).peer, STAGE_PROTOCOL, HOST) != DirectOffer(0):
                    break
                await trio.sleep(0.01)  # the listener's side ends in its own time


async def test_who_listens_at_one_address_offers_no_port_at_another() -> None:
    async with listening() as listener:
        assert listener.offer(identity(2).peer, STAGE_PROTOCOL, "192.0.2.1") == DirectOffer(0)
        assert listener.offer(identity(2).peer, ECHO, HOST) == DirectOffer(0)
    async with open_direct_listener(identity(1), ["0.0.0.0"], {STAGE_PROTOCOL: echo}) as listener:
        assert await comes(2, listener.offer(identity(2).peer, STAGE_PROTOCOL, HOST))


async def test_the_port_is_free_afterwards() -> None:
    async with listening() as listener:
        port = offered(listener, 2).port
        with socket.create_connection((HOST, port)):
            pass
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect((HOST, port))


async def test_whoever_has_offered_nothing_takes_nobody() -> None:
    async with listening() as listener:
        offer = offered(listener, 2)
        assert await comes(2, offer)
        async with await trio.open_tcp_stream(HOST, offer.port) as stranger:
            with trio.fail_after(1):
                assert await stranger.receive_some() == b""


@given(garbage=st.lists(st.binary(max_size=300), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_hurt_the_listener(garbage: list[bytes]) -> None:
    async def main() -> None:
        async with listening() as listener:
            offer = offered(listener, 2)
            for data in (*garbage, struct.pack("!H", 32) + (garbage[0] * 32)[:32] + b"".join(garbage)):
                async with await trio.open_tcp_stream(HOST, offer.port) as rogue:
                    with trio.move_on_after(0.01), suppress(trio.BrokenResourceError):
                        await rogue.send_all(data)
                        await rogue.send_eof()
                        await rogue.receive_some()
            assert await comes(2, offer)

    trio.run(main)


async def test_those_who_come_and_say_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVING_PER_IP_MAX", 3)
    monkeypatch.setattr(module, "DIRECT_S_MAX", 0.5)
    async with listening() as listener:
        offer = offered(listener, 2)
        silent = [await trio.open_tcp_stream(HOST, offer.port) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(PeerMisbehaved):
            await comes(2, offer)  # full, and said at once
        with trio.fail_after(2):
            for each in silent:
                assert await each.receive_some() == b""
                await each.aclose()
        assert await comes(2, offer)


# ── the stream by itself ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def streams() -> AsyncIterator[tuple[NoiseStream, NoiseStream]]:
    async with sockets() as (left, right):
        made: dict[str, NoiseStream] = {}

        async def respond() -> None:
            made["right"] = await Handshakes(identity(2)).respond(right)

        async with trio.open_nursery() as tasks:
            tasks.start_soon(respond)
            one = await Handshakes(identity(1)).initiate(left, identity(2).peer)
        other = made["right"]
        assert (one.peer, other.peer) == (identity(2).peer, identity(1).peer)
        yield one, other
        await one.reset()
        await other.reset()


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        left = await trio.open_tcp_stream(HOST, listener.socket.getsockname()[1])
        async with left, await listener.accept() as right:
            yield left, right


async def together(*tasks: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)


async def test_megabytes_both_ways_at_once_arrive_unchanged() -> None:
    there, back = os.urandom(20_000_003), os.urandom(9_999_999)

    async with streams() as (one, other):

        async def send(stream: NoiseStream, data: bytes) -> None:
            cuts = [0, 1, PIECE_BYTES_MAX, 3 * PIECE_BYTES_MAX, 5_000_000, len(data)]
            for start, stop in pairwise(cuts):
                await stream.send_all(data[start:stop])

        async def check(stream: NoiseStream, data: bytes) -> None:
            assert await read_exactly(stream, len(data)) == data

        with trio.fail_after(20):
            await together(
                lambda: send(one, there),
                lambda: send(other, back),
                lambda: check(one, back),
                lambda: check(other, there),
            )


async def test_the_end_of_a_closed_stream_comes_after_all_its_bytes() -> None:
    async with streams() as (one, other):
        async with trio.open_nursery() as tasks:
            await one.send_all(bytes(100_000))
            tasks.start_soon(one.aclose)
            assert await read_exactly(other, 100_000) == bytes(100_000)
            assert await other.receive_some() == b""
            assert await other.receive_some() == b""
            await other.aclose()
        with pytest.raises(PeerUnavailable, match="closed"):
            await one.send_all(b"x")


async def test_what_is_written_at_once_keeps_its_order_and_is_cut_by_no_end() -> None:
    """Until the system takes no more; what it did not take goes with the next write, or with the end."""
    sent, got = bytearray(), bytearray()
    async with streams() as (one, other):

        async def write() -> None:
            for round_ in range(3):
                while not one.unsent:
                    data = os.urandom(PIECE_BYTES_MAX - round_)
                    assert one.try_send(data)
                    sent.extend(data)
                assert not one.try_send(b"out of order")
                if round_ < 2:
                    await one.send_all(b"")
            await one.aclose()

        async def read() -> None:
            await trio.sleep(0.05)
            while data := await other.receive_some():
                got.extend(data)

        await together(write, read)
    assert got == sent


async def test_nothing_sent_is_no_end() -> None:
    async with streams() as (one, other):
        await one.send_all(b"")
        await one.send_all(b"x")
        assert await other.receive_some() == b"x"


async def test_a_connection_that_is_cut_has_no_clean_end() -> None:
    async with streams() as (one, other):
        await one.send_all(b"whole")
        await one._stream.send_eof()
        assert await other.receive_some() == b"whole"
        with pytest.raises(PeerUnavailable, match="cut off"):
            await other.receive_some()


async def test_a_reset_is_seen_at_once() -> None:
    async with streams() as (one, other):
        await one.reset()
        with trio.fail_after(1), pytest.raises(PeerUnavailable, match="broke"):
            await other.receive_some()


async def test_a_stream_that_was_let_go_says_so_to_whoever_reads_or_closes_it() -> None:
    async with streams() as (stream, _):
        await stream.reset()
        with pytest.raises(PeerUnavailable):
            await stream.receive_some()
    async with streams() as (stream, _):
        reading_ends = trio.Event()

        async def read() -> None:
            with pytest.raises(PeerUnavailable):
                await stream.receive_some()
            reading_ends.set()

        with trio.fail_after(5):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(read)
                tasks.start_soon(stream.aclose)
                await trio.sleep(0.05)
                await stream.reset()
                await reading_ends.wait()


async def test_bytes_that_are_not_the_peers_end_the_stream() -> None:
    async with streams() as (one, other):
        await one._stream.send_all(struct.pack("!H", 20) + bytes(20))
        with pytest.raises(PeerUnavailable, match="InvalidTag"):
            await other.receive_some()


async def test_cancelled_writers_leave_whole_messages() -> None:
    async with streams() as (one, other):
        got = bytearray()

        async def read_slowly() -> None:
            while data := await other.receive_some():
                got.extend(data)
                await trio.sleep(0.001)

        sent = 0
        async with trio.open_nursery() as tasks:
            tasks.start_soon(read_slowly)
            for number in range(30):
                with trio.move_on_after(0.0005):
                    await one.send_all(bytes([number]) * 300_000)
                sent = number
            await one.aclose()
        assert sent == 29
        whole, rest = divmod(len(got), 300_000)
        assert rest == 0
        assert whole
        assert all(len(set(got[at : at + 300_000])) == 1 for at in range(0, len(got), 300_000))


@pytest.mark.parametrize("way", ["reset", "aclose"])
async def test_a_stuck_writer_fails_when_the_stream_is_let_go(way: str) -> None:
    async with streams() as (one, _):

        async def write() -> None:
            with pytest.raises(PeerUnavailable):
                await one.send_all(bytes(50_000_000))

        with trio.fail_after(3):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(write)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await getattr(one, way)()


async def test_closing_while_a_task_reads_ends_both() -> None:
    async with streams() as (one, other):

        async def read_to_the_end(stream: NoiseStream) -> None:
            while await stream.receive_some():
                pass

        async def finish() -> None:
            await other.receive_some()
            await other.aclose()

        with trio.fail_after(3):
            async with trio.open_nursery() as tasks:
                tasks.start_soon(read_to_the_end, one)
                tasks.start_soon(finish)
                await trio.testing.wait_all_tasks_blocked()
                await one.aclose()


async def test_the_messages_are_those_of_libp2p() -> None:
    """The other end here is libp2p's own secure session."""
    key_pair = create_new_key_pair(identity(7).seed)
    pattern = PatternXX(
        ID.from_pubkey(key_pair.public_key),
        key_pair.private_key,
        create_new_x25519_key_pair().private_key,
        prologue=DIRECT_PROTOCOL.encode(),
    )
    data = os.urandom(200_000)
    async with sockets() as (left, right):

        async def respond() -> None:
            session = await pattern.handshake_inbound(RawConnection(BufferedTcpStream(right), False))
            assert await session.read(len(data)) == data
            await session.write(data)

        async with trio.open_nursery() as tasks:
            tasks.start_soon(respond)
            stream = await Handshakes(identity(1)).initiate(left, identity(7).peer)
            await stream.send_all(data)
            assert await read_exactly(stream, len(data)) == data


async def test_what_was_said_to_a_port_of_libp2p_is_no_handshake_here() -> None:
    key_pair = create_new_key_pair(identity(7).seed)
    plain = PatternXX(
        ID.from_pubkey(key_pair.public_key), key_pair.private_key, create_new_x25519_key_pair().private_key
    )
    async with sockets() as (left, right):

        async def respond() -> None:
            with pytest.raises(BaseLibp2pError):  # hung up on
                await plain.handshake_inbound(RawConnection(BufferedTcpStream(right), False))

        async with trio.open_nursery() as tasks:
            tasks.start_soon(respond)
            with pytest.raises(PeerMisbehaved, match="handshake"):
                await Handshakes(identity(1)).initiate(left, identity(7).peer)
            await left.aclose()
