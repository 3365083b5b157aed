"""A libp2p host that survives its peers, and how it dials."""

from collections.abc import Sequence
from typing import Any

import structlog
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from multiaddr import Multiaddr

from p2pgrid.net.libp2p_transport.addresses import announced
from p2pgrid.net.libp2p_transport.wire import SteadyYamux
from p2pgrid.wire.signing import Identity

log = structlog.get_logger()

CONNECTIONS_MAX = 1024
STREAMS_PER_PEER_MAX = 128
DIAL_S_MAX = 4.5
STAGGER_S = 0.25
"""The next address of a peer is tried when the one before gave nothing for so long (RFC 8305, section 5)."""

CLOSE_STREAM_S_MAX = 0.4
INTERFACES_EVERY_S = 10.0


def build_host(identity: Identity, listen: Sequence[Multiaddr], announce: Sequence[Multiaddr] = ()) -> Any:
    """TCP, Noise and yamux, and nothing else; not yet running. Tells others `announce`, if there is any."""
    key_pair = create_new_key_pair(identity.seed)
    noise = NoiseTransport(key_pair, noise_privkey=create_new_x25519_key_pair().private_key)
    host: Any = new_host(
        key_pair=key_pair,
        sec_opt={NOISE_ID: noise},
        muxer_opt={TProtocol(YAMUX_ID): SteadyYamux},
        listen_addrs=list(listen),
        connection_config=ConnectionConfig(
            max_connections=CONNECTIONS_MAX,
            high_watermark=CONNECTIONS_MAX,
            min_connections=0,
            low_watermark=0,
            outbound_stream_protocol_negotiation_timeout=DIAL_S_MAX,
            inbound_stream_protocol_negotiation_timeout=DIAL_S_MAX,
            inbound_upgrade_timeout=DIAL_S_MAX,
            outbound_upgrade_timeout=DIAL_S_MAX,
        ),
        addrs_factory=(lambda listening: list(announce)) if announce else _Announcer(),
        disable_identify_address_discovery=True,
    )
    network = host.get_network()
    # Its rate limits and its circuit breaker count peers behind one address as one; ours are above.
    network.set_resource_manager(None)
    network.retry_config = RetryConfig(max_retries=0)
    network.auto_connector.start = trio.lowlevel.checkpoint  # no connections but those somebody asked for
    network.dial_peer = Dialler(host).dial_peer
    network.set_stream_handler(_Guard(host))
    return host


class _Announcer:
    """Listening addresses → announced ones. Asked for each DHT message, so interfaces are read now and then."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._listening: list[Multiaddr] = []
        self._announced: list[Multiaddr] = []

    def __call__(self, listening: list[Multiaddr]) -> list[Multiaddr]:
        now = trio.current_time()
        if now - self._read_at > INTERFACES_EVERY_S or listening != self._listening:
            self._read_at, self._listening = now, listening
            self._announced = announced(listening)
        return self._announced


class _Guard:
    """Runs libp2p's own handler of incoming streams; nothing that a peer sends gets an exception past it."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self._open: dict[ID, int] = {}

    async def __call__(self, stream: Any) -> None:
        peer = stream.muxed_conn.peer_id
        if self._open.get(peer, 0) >= STREAMS_PER_PEER_MAX:
            log.info("too many streams from %s", peer)
            await let_go(stream)
            return
        self._open[peer] = self._open.get(peer, 0) + 1
        try:
            await self._host._swarm_stream_handler(stream)
        except Exception as error:  # noqa: BLE001  (the owner of this failure: else it ends the whole host)
            log.debug("stream from %s reset: %r", peer, error)
            await let_go(stream)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


class Dialler:
    """Dials a peer at all its addresses, one after another but without waiting long for any.

    libp2p itself tries only one TCP address a peer, always sleeps 250 ms, and then refuses for a minute to
    dial a peer that did not answer.
    """

    def __init__(self, host: Any) -> None:
        self._host = host
        self._network = host.get_network()
        self._dialling: dict[ID, trio.Lock] = {}

    async def dial_peer(self, peer: ID) -> list[Any]:
        """Connections to `peer`, at least one. Raises SwarmException, with the reason of each address."""
        lock = self._dialling.setdefault(peer, trio.Lock())
        try:
            async with lock:
                if connections := live_connections(self._host, peer):
                    return connections
                try:
                    addresses = list(self._host.get_peerstore().addrs(peer))
                except PeerStoreError as error:
                    raise SwarmException("no address is known") from error
                return [await self._race(peer, addresses)]
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._dialling.pop(peer, None)

    async def _race(self, peer: ID, addresses: list[Multiaddr]) -> Any:
        reasons = {str(address): "no answer" for address in addresses}
        won: list[Any] = []
        with trio.move_on_after(DIAL_S_MAX):
            async with trio.open_nursery() as dials:

                async def dial(address: Multiaddr, failed: trio.Event) -> None:
                    try:
                        won.append(await self._network.dial_addr(address, peer))
                        dials.cancel_scope.cancel()
                    except BaseLibp2pError as error:
                        reasons[str(address)] = _innermost(error)
                        failed.set()

                for address in addresses:
                    failed = trio.Event()
                    dials.start_soon(dial, address, failed)
                    with trio.move_on_after(STAGGER_S):
                        await failed.wait()
        if not won:
            listed = "; ".join(f"{address}: {why}" for address, why in reasons.items())
            raise SwarmException(listed or "no address is known")
        return won[0]


def live_connections(host: Any, peer: ID) -> list[Any]:
    return [each for each in host.get_network().get_connections(peer) if not each.is_closed]


async def let_go(stream: Any) -> None:
    """Reset a stream; if even that cannot be written, the connection goes. Never raises."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(CLOSE_STREAM_S_MAX) as waiting:
            try:
                await stream.reset()
            except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
        if waiting.cancelled_caught:
            await abort(stream.muxed_conn)


async def abort(muxed: Any) -> None:
    """Close the socket under a connection, whoever is stuck in it. Never raises, never waits."""
    with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_STREAM_S_MAX):
        try:
            await muxed.secured_conn.close()
        except (BaseLibp2pError, OSError) as error:
            log.debug("closing a connection: %r", error)


async def close_host(host: Any) -> None:
    """Close all connections at once, then the listeners: afterwards the port is free."""
    connections = [each for of_peer in host.get_network().connections.values() for each in of_peer]
    with trio.CancelScope(shield=True):
        with trio.move_on_after(CLOSE_STREAM_S_MAX):
            async with trio.open_nursery() as closing:
                for connection in connections:
                    closing.start_soon(connection.close)
        for connection in connections:
            await abort(connection.muxed_conn)
        with trio.move_on_after(CLOSE_STREAM_S_MAX):
            await host.close()


def _innermost(error: BaseException) -> str:
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return " ".join(str(text).split())[:200]
