"""Connections of their own for links between neighbours, offered and asked for over libp2p.

Yamux costs a link more than the network does, and a link needs nothing of it: it is one stream, for as long as both
peers live. See docs/protocols/direct-1.md.
"""

import ipaddress
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from p2pgrid.errors import LocalFault, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.libp2p_transport.noise_stream import Handshakes, NoiseStream
from p2pgrid.net.transport import StreamHandler
from p2pgrid.wire.messages import STAGE_PROTOCOL
from p2pgrid.wire.signing import Identity
from p2pgrid.wire.transfer_messages import KV_PROTOCOL, DirectOffer

log = structlog.get_logger()

DIRECT_PROTOCOLS = frozenset({STAGE_PROTOCOL, KV_PROTOCOL})
"""Long-lived streams, for which a connection pays."""

DIRECT_S_MAX = 1.5
"""From asking for an offer to the peer's word that its token was good; after that the stream goes over libp2p."""

DIAL_S_MAX = 0.5
RETRY_AFTER_S = 300.0
FAILURES_MAX = 1024
HOSTS_MAX = 4

TOKEN_BYTES = 16
TOKEN_S = 10.0
TOKENS_MAX = 256
ARRIVING_MAX = 64
ARRIVING_PER_IP_MAX = 32
STREAMS_PER_PEER_MAX = 8
"""Streams of one peer and tokens that it holds, together."""


@dataclass(frozen=True)
class _Ticket:
    """Who may come with a token, for what, and until when."""

    peer: PeerId
    protocol: str
    expires_at: float


class DirectListener:
    """Accepts those connections that it has offered, and hands them to the handlers of their protocols."""

    def __init__(
        self, handshakes: Handshakes, listeners: Sequence[trio.SocketListener], handlers: Mapping[str, StreamHandler]
    ) -> None:
        self._handshakes = handshakes
        self._listeners = listeners
        self._handlers = handlers
        self._tickets: dict[bytes, _Ticket] = {}
        self._streams: Counter[PeerId] = Counter()
        self._arriving: Counter[str] = Counter()
        self._ports = {name[0]: name[1] for each in listeners if (name := each.socket.getsockname())}

    async def run(self) -> None:
        """Accept until cancelled."""
        await trio.serve_listeners(self._accept, list(self._listeners))

    def offer(self, peer: PeerId, protocol: str, local_host: str) -> DirectOffer:
        """Where `peer` may come with a stream of `protocol`, having reached us at `local_host`."""
        now = trio.current_time()
        self._tickets = {token: ticket for token, ticket in self._tickets.items() if ticket.expires_at > now}
        held = self._streams[peer] + sum(ticket.peer == peer for ticket in self._tickets.values())
        port = self._port_at(local_host)
        served = protocol in DIRECT_PROTOCOLS and protocol in self._handlers
        if port is None or not served or held >= STREAMS_PER_PEER_MAX or len(self._tickets) >= TOKENS_MAX:
            return DirectOffer(0)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._tickets[token] = _Ticket(peer, protocol, now + TOKEN_S)
        return DirectOffer(port, token)

    def _port_at(self, local_host: str) -> int | None:
        everywhere = "::" if ":" in local_host else "0.0.0.0"
        return self._ports.get(local_host, self._ports.get(everywhere))

    async def _accept(self, tcp: trio.SocketStream) -> None:
        arrived = await self._let_in(tcp)
        if arrived is None:
            return  # `serve_listeners` closes it
        stream, token, protocol = arrived
        self._streams[stream.peer] += 1
        try:
            await stream.send_all(token)
            await self._handlers[protocol](stream)
        except PeerUnavailable as error:
            log.debug("a direct connection of %s: %s", stream.peer, error)
        finally:
            self._streams[stream.peer] -= 1
            self._streams += Counter()  # forgets those at zero
            await stream.aclose()

    async def _let_in(self, tcp: trio.SocketStream) -> tuple[NoiseStream, bytes, str] | None:
        """The stream, its token and its protocol, if it is one that was offered."""
        try:
            host = tcp.socket.getpeername()[0]
        except OSError:
            return None  # it has gone already
        full = self._arriving.total() >= ARRIVING_MAX or self._arriving[host] >= ARRIVING_PER_IP_MAX
        if full or not self._tickets:  # whoever has offered nothing expects nobody
            return None
        self._arriving[host] += 1
        try:
            with trio.move_on_after(DIRECT_S_MAX):
                stream = await self._handshakes.respond(tcp)
                token = await stream.receive_message()
                return stream, token, self._redeem(token, stream.peer)
        except (PeerMisbehaved, PeerUnavailable) as error:
            log.debug("a direct connection from %s refused: %s", host, error)
        finally:
            self._arriving[host] -= 1
            self._arriving += Counter()
        return None

    def _redeem(self, token: bytes, peer: PeerId) -> str:
        ticket = self._tickets.get(token)
        if ticket is None or ticket.peer != peer or ticket.expires_at <= trio.current_time():
            raise PeerMisbehaved(f"{peer} has no such token")
        del self._tickets[token]
        return ticket.protocol


@asynccontextmanager
async def open_direct_listener(
    identity: Identity, hosts: Iterable[str], handlers: Mapping[str, StreamHandler]
) -> AsyncIterator[DirectListener]:
    """Listen at a free port of each of `hosts` (IP addresses); free again afterwards. Raises LocalFault."""
    listeners: list[trio.SocketListener] = []
    try:
        for host in hosts:
            listeners += await _listen(host)
        listener = DirectListener(Handshakes(identity), listeners, handlers)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(listener.run)
            yield listener
            tasks.cancel_scope.cancel()
    finally:
        for each in listeners:
            each.socket.close()


async def _listen(host: str) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(0, host=host)
    except OSError as error:
        raise LocalFault(f"cannot listen on a second port of {host}: {error}") from error


class DirectDialler:
    """Dials offers, and remembers for a while with whom that led to nothing."""

    def __init__(self, identity: Identity) -> None:
        self._handshakes = Handshakes(identity)
        self._not_before: dict[PeerId, float] = {}

    def may_try(self, peer: PeerId) -> bool:
        return self._not_before.get(peer, float("-inf")) <= trio.current_time()

    def failed(self, peer: PeerId) -> None:
        """That peer can be reached, but not so: leave it for a while."""
        self._not_before.pop(peer, None)
        while len(self._not_before) >= FAILURES_MAX:
            del self._not_before[next(iter(self._not_before))]
        self._not_before[peer] = trio.current_time() + RETRY_AFTER_S

    async def dial(self, peer: PeerId, offer: DirectOffer, hosts: Iterable[str]) -> NoiseStream:
        """A stream at the first of `hosts` (IP addresses) that takes it. Raises PeerUnavailable, PeerMisbehaved."""
        if not offer.port or len(offer.token) < TOKEN_BYTES:
            raise PeerUnavailable(f"{peer} offers no direct connection")
        reasons = []
        for host in list(dict.fromkeys(hosts))[:HOSTS_MAX]:
            try:
                with trio.fail_after(DIAL_S_MAX):
                    tcp = await trio.open_tcp_stream(str(ipaddress.ip_address(host)), offer.port)
            except (OSError, trio.TooSlowError) as error:
                reasons.append(f"{host}: {error or 'no answer'}")
                continue
            return await self._introduce(tcp, peer, offer.token)
        raise PeerUnavailable(f"{peer} cannot be reached directly: {'; '.join(reasons) or 'no address is known'}")

    async def _introduce(self, tcp: trio.SocketStream, peer: PeerId, token: bytes) -> NoiseStream:
        taken = False
        try:
            stream = await self._handshakes.initiate(tcp, peer)
            await stream.send_all(token)
            if await stream.receive_message() != token:
                raise PeerMisbehaved(f"{peer} does not stand by its offer")
            taken = True
            return stream
        finally:
            if not taken:
                tcp.socket.close()
