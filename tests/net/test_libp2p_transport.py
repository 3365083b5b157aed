"""The real network: pairs and triples of libp2p hosts in one process, on loopback."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from p2pgrid.errors import BadInput, LocalFault, PeerUnavailable
from p2pgrid.net.libp2p_transport import host, open_libp2p, opening
from p2pgrid.net.libp2p_transport.addresses import announced, dialable
from p2pgrid.net.libp2p_transport.host import live_connections
from p2pgrid.net.libp2p_transport.wire import SteadyYamux
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import STAGE_PROTOCOL, Contact, Hello
from tests.net.hostile import FOUR_GIB_HEADER, assert_survives, payloads
from tests.net.peers import identity, linked, step, token

ECHO = "/p2pgrid/echo-for-tests/1"


def contact(transport: Transport) -> Contact:
    return Contact(transport.peer, transport.addresses)


async def echo(stream: ByteStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def is_echoed(transport: Transport, there: Contact, data: bytes = b"hello") -> bool:
    stream = await transport.open_stream(there, ECHO)
    await stream.send_all(data)
    back = b""
    while len(back) < len(data):
        back += await stream.receive_some()
    await stream.aclose()
    return back == data


@asynccontextmanager
async def hosts(count: int) -> AsyncIterator[list[Transport]]:
    """The first is the bootstrap peer of the others."""
    async with open_libp2p(identity(1), [], [], dht_server=True) as first:
        if count == 1:
            yield [first]
            return
        async with open_libp2p(identity(2), [], first.addresses, dht_server=True) as second:
            if count == 2:
                yield [first, second]
                return
            async with open_libp2p(identity(3), [], first.addresses, dht_server=True) as third:
                yield [first, second, third]


async def test_streams_carry_bytes_between_named_peers() -> None:
    async with hosts(2) as (a, b):
        assert a.peer == identity(1).peer
        a.serve(ECHO, echo)
        assert await is_echoed(b, contact(a), os.urandom(300_000))
        with pytest.raises(PeerUnavailable, match="does not speak"):
            await b.open_stream(contact(a), "/p2pgrid/unheard-of/1")
        with pytest.raises(PeerUnavailable, match="does not dial itself"):
            await a.open_stream(contact(a), ECHO)


async def test_a_peer_is_found_at_the_one_address_of_many_that_is_right() -> None:
    async with hosts(1) as (a,), open_libp2p(identity(2), [], [], dht_server=False) as b:
        a.serve(ECHO, echo)
        addresses = ("/ip4/127.0.0.1/tcp/1", "no address", "/ip4/0.0.0.0/tcp/5", *a.addresses)
        assert await is_echoed(b, Contact(a.peer, addresses))


async def test_another_peer_at_the_address_is_refused() -> None:
    async with hosts(1) as (a,), open_libp2p(identity(2), [], [], dht_server=False) as b:
        a.serve(ECHO, echo)
        with pytest.raises(PeerUnavailable, match="cannot reach"):
            await b.open_stream(Contact(identity(9).peer, a.addresses), ECHO)
        assert await is_echoed(b, contact(a))


async def test_a_peer_that_did_not_answer_can_be_dialled_again_at_once() -> None:
    async with open_libp2p(identity(2), [], [], dht_server=False) as b:
        gone = Contact(identity(1).peer, ("/ip4/127.0.0.1/tcp/1",))
        for _ in range(2):
            with pytest.raises(PeerUnavailable, match="refused"):
                await b.open_stream(gone, ECHO)
        async with hosts(1) as (a,):
            a.serve(ECHO, echo)
            assert await is_echoed(b, contact(a))


async def test_a_handler_that_fails_hurts_nobody_else() -> None:
    async def fail(stream: ByteStream) -> None:
        await stream.receive_some()
        raise PeerUnavailable("on purpose")

    async with hosts(2) as (a, b):
        a.serve("/p2pgrid/fails/1", fail)
        a.serve(ECHO, echo)
        stream = await b.open_stream(contact(a), "/p2pgrid/fails/1")
        await stream.send_all(b"x")
        with trio.fail_after(2):
            with suppress(PeerUnavailable):
                assert await stream.receive_some() == b""
        assert await is_echoed(b, contact(a))


async def test_plaintext_is_refused() -> None:
    async with hosts(1) as (a,):
        key_pair = create_new_key_pair(bytes(31) + b"\x09")
        insecure = {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(key_pair)}
        rogue = new_host(key_pair=key_pair, sec_opt=insecure)
        async with rogue.run(listen_addrs=[]):
            address = Multiaddr(a.addresses[0].split("/p2p/")[0])
            with pytest.raises(BaseLibp2pError), trio.fail_after(5):
                await rogue.get_network().dial_addr(address, ID.from_string(a.peer))
            assert not rogue.get_connected_peers()
            await rogue.close()
        async with open_libp2p(identity(2), [], a.addresses, dht_server=False):
            pass


async def test_who_comes_late_is_found_however_many_came_and_went_before() -> None:
    """libp2p alone keeps the first 20 of a key."""
    key = "/p2pgrid/model"
    async with hosts(2) as (a, b):
        store = a._dht.service.provider_store  # type: ignore[attr-defined]
        for number in range(100, 100 + 2 * BUCKET_SIZE):
            store.add_provider(key.encode(), PeerInfo(ID.from_base58(identity(number).peer), []))
        assert len(store.providers[key.encode()]) == BUCKET_SIZE
        await b.announce(key)
        with trio.fail_after(10):
            while b.peer not in store.providers[key.encode()]:  # noqa: ASYNC110 - libp2p tells nobody
                await trio.sleep(0.01)
        assert identity(99 + 2 * BUCKET_SIZE).peer in store.providers[key.encode()]
        assert identity(100).peer not in store.providers[key.encode()]


async def test_providers_are_found_among_three_nodes_and_never_ourselves() -> None:
    async with hosts(3) as (a, b, c):
        await b.announce("/p2pgrid/model")
        for node in (a, c):
            (found,) = await node.find_providers("/p2pgrid/model")
            assert (found.peer, found.addresses) == (b.peer, b.addresses)
        assert await b.find_providers("/p2pgrid/model") == []
        assert await a.find_providers("/p2pgrid/other") == []
        with pytest.raises(BadInput, match="50 bytes"):
            await a.find_providers("k" * 51)


async def test_a_lookup_is_never_answered_from_an_earlier_one() -> None:
    async with hosts(3) as (a, b, c):
        key = "/p2pgrid/model"
        await b.announce(key)
        async with open_libp2p(identity(4), [], a.addresses, dht_server=False) as client:
            assert [each.peer for each in await client.find_providers(key)] == [b.peer]
            await c.announce(key)
            assert {each.peer for each in await client.find_providers(key)} == {b.peer, c.peer}
            store = client._dht.service.provider_store  # type: ignore[attr-defined]
            assert not store.providers, "what was found is no record of ours"


async def test_the_port_is_free_again_after_the_end() -> None:
    async with hosts(1) as (a,):
        address = a.addresses[0].split("/p2p/")[0]
        port = int(address.rpartition("/")[2])
        with pytest.raises(LocalFault, match="in use"):
            async with open_libp2p(identity(2), [address], [], dht_server=True):
                pass
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    async with open_libp2p(identity(2), [address], [], dht_server=True) as again:
        assert again.addresses == (f"{address}/p2p/{again.peer}",)


async def test_closing_is_quick_with_open_streams_and_connections() -> None:
    async with hosts(1) as (a,):
        a.serve(ECHO, echo)
        async with open_libp2p(identity(2), [], a.addresses, dht_server=True) as b:
            stream = await b.open_stream(contact(a), ECHO)
            await stream.send_all(b"x")
            started = trio.current_time()
        assert trio.current_time() - started < 1
        with pytest.raises(PeerUnavailable):
            while await stream.receive_some():
                pass
            raise PeerUnavailable("a clean end will do")


async def test_cancelling_ends_the_host_and_an_error_comes_out_alone() -> None:
    with trio.move_on_after(0.3) as scope:
        async with open_libp2p(identity(1), [], [], dht_server=True):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(PeerUnavailable, match=r"^just so$"):
        async with open_libp2p(identity(1), [], [], dht_server=True):
            raise PeerUnavailable("just so")


@pytest.mark.parametrize(
    ("listen", "bootstrap", "expected"),
    [
        (["nonsense"], [], "nonsense"),
        (["/ip4/127.0.0.1/udp/4001"], [], "udp"),
        (["/ip4/300.0.0.1/tcp/1"], [], "300"),
        ([], ["nonsense"], "nonsense"),
        ([], ["/ip4/127.0.0.1/tcp/4001"], "names no peer"),
        ([], ["/ip4/127.0.0.1/tcp/4001/p2p/garbage"], "garbage"),
    ],
)
async def test_an_address_that_is_none_is_bad_input(listen: list[str], bootstrap: list[str], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        async with open_libp2p(identity(1), listen, bootstrap, dht_server=True):
            pass


async def test_no_bootstrap_peer_at_all_is_said_with_each_address(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "DIAL_S_MAX", 1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        silent = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}"
        closed = "/ip4/127.0.0.1/tcp/1"
        started = trio.current_time()
        with pytest.raises(PeerUnavailable) as caught:
            bootstrap = [f"{silent}/p2p/{identity(8).peer}", f"{closed}/p2p/{identity(9).peer}"]
            async with open_libp2p(identity(1), [], bootstrap, dht_server=True):
                pass
    assert trio.current_time() - started < 2
    message = str(caught.value)
    assert "\n" not in message
    assert silent in message
    assert closed in message
    assert "refused" in message
    assert capfd.readouterr() == ("", "")


async def test_one_bootstrap_peer_is_enough() -> None:
    async with hosts(1) as (a,):
        bootstrap = [f"/ip4/127.0.0.1/tcp/1/p2p/{identity(9).peer}", *a.addresses]
        async with open_libp2p(identity(2), [], bootstrap, dht_server=True) as b:
            await b.announce("/p2pgrid/x")
            assert [each.peer for each in await a.find_providers("/p2pgrid/x")] == [b.peer]


async def test_a_lost_bootstrap_peer_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "RECONNECT_S", 0.1)

    async def first(listen: list[str], task_status: trio.TaskStatus[Transport]) -> None:
        with life:
            async with open_libp2p(identity(1), listen, [], dht_server=True) as transport:
                task_status.started(transport)
                await trio.sleep_forever()
        gone.set()

    async with trio.open_nursery() as tasks:
        life, gone = trio.CancelScope(), trio.Event()
        a: Transport = await tasks.start(first, [])
        addresses = a.addresses
        async with open_libp2p(identity(2), [], addresses, dht_server=True) as b:
            b.serve(ECHO, echo)
            life.cancel()
            await gone.wait()
            life = trio.CancelScope()
            a = await tasks.start(first, [addresses[0].split("/p2p/")[0]])
            with trio.fail_after(10):
                while True:
                    if await reaches(a, Contact(b.peer)):  # no address: only over b's own connection
                        break
                    await trio.sleep(0.05)
        life.cancel()


async def reaches(transport: Transport, there: Contact) -> bool:
    try:
        return await is_echoed(transport, there)
    except PeerUnavailable:
        return False


async def test_links_work_over_libp2p_and_outlive_cancelled_senders() -> None:
    async with hosts(2) as (a, b), linked(a) as one, linked(b) as other:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(one.links.connect, other.contact)
            tasks.start_soon(other.links.connect, one.contact)
        sent = 0
        while sent < 30:
            with trio.move_on_after(0.01):
                await one.links.send(other.peer, step(200_000, sent))
                sent += 1
        await one.links.send(other.peer, token(1))
        with trio.fail_after(10):
            await other.arrival(31)
        assert [m.position for _, m in other.arrived[:-1]] == list(range(30))  # type: ignore[union-attr]
        assert not one.lost
        assert not other.lost


async def test_a_write_that_was_begun_is_never_cut_in_half() -> None:
    """Else the two sides would disagree on the next nonce, and the connection would be dead."""
    async with hosts(2) as (a, b):
        a.serve(ECHO, echo)
        for turns in range(60):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as tasks:
                    tasks.start_soon(b.open_stream, contact(a), ECHO)
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        (connection,) = live_connections(b._host, ID.from_string(a.peer))  # type: ignore[attr-defined]
        assert type(connection.muxed_conn) is SteadyYamux
        stream = await b.open_stream(contact(a), ECHO)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        assert live_connections(b._host, ID.from_string(a.peer)) == [connection]  # type: ignore[attr-defined]


async def test_a_four_gib_header_costs_its_sender_the_link_and_nobody_else() -> None:
    async with hosts(2) as (a, b), linked(a) as one, linked(b) as other:
        await other.links.connect(one.contact)
        async with open_libp2p(identity(5), [], [], dht_server=False) as rogue:
            stream = await rogue.open_stream(one.contact, STAGE_PROTOCOL)
            await stream.send_all(frame(Hello("rogue", 1)))
            assert await stream.receive_some()
            await stream.send_all(FOUR_GIB_HEADER + os.urandom(1000))
            with trio.fail_after(5):
                await one.loss()
            await stream.reset()
            assert "limit" in one.lost[0][1]
            await other.links.send(one.peer, token(7))
            with trio.fail_after(5):
                await one.arrival(1)


@given(payloads=payloads())
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_hurt_a_libp2p_node(payloads: list[bytes]) -> None:
    async def main() -> None:
        async with hosts(2) as (a, b), linked(a) as one, linked(b) as other:
            await one.links.connect(other.contact)
            async with open_libp2p(identity(5), [], [], dht_server=False) as rogue:
                for protocol in (STAGE_PROTOCOL, "/ipfs/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"):
                    await assert_survives(a, rogue, protocol, payloads, wait_s=0.05)
            await other.links.send(one.peer, token(5))
            with trio.fail_after(5):
                await one.arrival(1)

    trio.run(main)


def test_all_interfaces_are_announced_by_their_own_addresses() -> None:
    addresses = [str(each) for each in announced([Multiaddr("/ip4/0.0.0.0/tcp/4001")])]
    assert addresses
    assert all(each.endswith("/tcp/4001") and "0.0.0.0" not in each for each in addresses)
    assert [str(each) for each in announced([Multiaddr("/ip4/192.0.2.1/tcp/5")])] == ["/ip4/192.0.2.1/tcp/5"]


def test_what_cannot_be_dialled_is_left_out() -> None:
    given_ = ["", "x", "/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/tcp/0", "/ip4/192.0.2.1/udp/7/quic-v1", "/dns4/a.b/tcp/7"]
    assert [str(each) for each in dialable(given_)] == ["/dns4/a.b/tcp/7"]
    assert len(dialable(f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 100))) == 16
