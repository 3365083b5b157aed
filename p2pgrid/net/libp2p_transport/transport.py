"""The transport port on a running libp2p host."""

from typing import Any

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from p2pgrid.errors import P2pgridError, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.libp2p_transport.addresses import dialable, ip_hosts
from p2pgrid.net.libp2p_transport.dht import Dht
from p2pgrid.net.libp2p_transport.direct import DIRECT_PROTOCOLS, DIRECT_S_MAX, DirectDialler, DirectListener
from p2pgrid.net.libp2p_transport.host import CLOSE_STREAM_S_MAX, abort, let_go, live_connections
from p2pgrid.net.libp2p_transport.wire import QuickStream, hosts_of
from p2pgrid.net.transport import ByteStream, StreamHandler
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.transfer_messages import DIRECT_PROTOCOL, DirectOffer, DirectRequest

log = structlog.get_logger()

NEGOTIATE_S_MAX = 2.5
SILENT_S_MAX = 2.0
"""A connection on which a new stream gets no answer for so long is dead, whatever TCP thinks. Less than the
deadlines of our callers, so that their giving up shows it too."""

ADDRESS_TTL_S = 3600

_STREAM_ERRORS = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, OSError, ValueError)


class Libp2pStream:
    """See `net.transport.ByteStream`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._quick = QuickStream(stream.muxed_stream)
        self._peer = PeerId(str(stream.muxed_conn.peer_id))
        self._closed = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def own_host(self) -> str | None:
        """Our IP address on the connection underneath; None when it is gone."""
        hosts = hosts_of(self._stream.muxed_conn)
        return hosts[0] if hosts is not None else None

    async def send_all(self, data: bytes) -> None:
        try:
            await self._quick.write(data)
        except _STREAM_ERRORS as error:
            raise PeerUnavailable(f"the stream to {self._peer} broke: {_brief(error)}") from error

    unsent = False

    def try_send(self, data: bytes) -> bool:
        return False

    async def receive_some(self) -> bytes:
        try:
            return await self._quick.read()
        except MuxedStreamEOF:
            return b""
        except _STREAM_ERRORS as error:
            raise PeerUnavailable(f"the stream from {self._peer} broke: {_brief(error)}") from error

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            with trio.move_on_after(CLOSE_STREAM_S_MAX) as waiting:
                try:
                    await self._stream.close()
                except _STREAM_ERRORS as error:
                    log.debug("closing a stream to %s: %r", self._peer, error)
            if waiting.cancelled_caught:
                await abort(self._stream.muxed_conn)

    async def reset(self) -> None:
        if not self._closed:
            self._closed = True
            await let_go(self._stream)


class Libp2pTransport:
    """See `net.transport.Transport`."""

    def __init__(self, host: Any, dht: Dht, direct: DirectDialler | None = None) -> None:
        self._host = host
        self._dht = dht
        self._direct = direct
        self._peer = PeerId(str(host.get_id()))
        self.handlers: dict[str, StreamHandler] = {}
        """What is served, by protocol; none of them raises."""

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self._host.get_addrs())

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def handle(stream: ByteStream) -> None:
            try:
                await handler(stream)
            except P2pgridError as error:
                log.info("stream %s from %s reset: %s", protocol, stream.peer, error)
                await stream.reset()
            except Exception:  # the owner of the handler's task: no handler may hurt another one
                log.exception("handler of %s failed on a stream from %s", protocol, stream.peer)
                await stream.reset()
            finally:
                await stream.aclose()

        async def handle_libp2p(net_stream: Any) -> None:
            await handle(Libp2pStream(net_stream))

        self.handlers[protocol] = handle
        self._host.set_stream_handler(TProtocol(protocol), handle_libp2p)

    def serve_offers(self, listener: DirectListener) -> None:
        """Tell those who ask where `listener` takes their streams."""

        async def handle(stream: ByteStream) -> None:
            own_host = stream.own_host if isinstance(stream, Libp2pStream) else None

            async def offer(request: DirectRequest) -> DirectOffer:
                await trio.lowlevel.checkpoint_if_cancelled()
                return listener.offer(stream.peer, request.protocol, own_host or "")

            await answer(stream, DirectRequest, offer, deadline_s=DIRECT_S_MAX)

        self.serve(DIRECT_PROTOCOL, handle)

    async def open_stream(self, contact: Contact, protocol: str) -> ByteStream:
        if contact.peer == self._peer:
            raise PeerUnavailable("a node does not dial itself")
        peer = await self.connect(contact)
        if self._direct is None or protocol not in DIRECT_PROTOCOLS or not self._direct.may_try(contact.peer):
            return await self._open_muxed(peer, protocol)
        if (direct := await self._open_direct(self._direct, contact, peer, protocol)) is not None:
            return direct
        stream = await self._open_muxed(peer, protocol)
        self._direct.failed(contact.peer)  # it is not that the peer is gone
        return stream

    async def _open_direct(self, direct: DirectDialler, contact: Contact, peer: ID, protocol: str) -> ByteStream | None:
        """A connection of its own for that stream; None when it comes to nothing."""
        with trio.move_on_after(DIRECT_S_MAX):
            try:
                request = DirectRequest(protocol)
                offer = await ask(self, contact, DIRECT_PROTOCOL, request, DirectOffer, deadline_s=DIRECT_S_MAX)
                hosts = [pair[1] for each in live_connections(self._host, peer) if (pair := hosts_of(each.muxed_conn))]
                return await direct.dial(contact.peer, offer, hosts + ip_hosts(dialable(contact.addresses)))
            except (PeerUnavailable, PeerMisbehaved) as error:
                log.debug("no direct connection to %s: %s", contact.peer, error)
        return None

    async def _open_muxed(self, peer: ID, protocol: str) -> ByteStream:
        opened = False
        started = trio.current_time()
        try:
            with trio.move_on_after(NEGOTIATE_S_MAX):
                stream = Libp2pStream(await self._host.new_stream(peer, [TProtocol(protocol)]))
                opened = True
                return stream
        except _STREAM_ERRORS as error:
            opened = True  # it answered, if only to refuse
            raise PeerUnavailable(f"{peer} does not speak {protocol}: {_brief(error)}") from error
        finally:
            if not opened and trio.current_time() - started >= SILENT_S_MAX:
                await self._abort_silent(peer)
        raise PeerUnavailable(f"{peer} does not answer on its connection")

    async def connect(self, contact: Contact) -> ID:
        """Have a connection to that peer. Raises PeerUnavailable, with the reason for each address."""
        peer = _id_of(contact.peer)
        if live_connections(self._host, peer):
            return peer
        addresses = dialable(contact.addresses)
        if addresses:
            self._host.get_peerstore().clear_addrs(peer)  # what is known now is better than what was
            self._host.get_peerstore().add_addrs(peer, addresses, ADDRESS_TTL_S)
        try:
            await self._host.get_network().dial_peer(peer)
        except _STREAM_ERRORS as error:
            raise PeerUnavailable(f"cannot reach {contact.peer} ({_brief(error)})") from error
        return peer

    async def announce(self, key: str) -> None:
        await self._dht.announce(key)

    async def find_providers(self, key: str) -> list[Contact]:
        return await self._dht.find_providers(key)

    async def _abort_silent(self, peer: ID) -> None:
        for connection in live_connections(self._host, peer):
            await abort(connection.muxed_conn)


def _id_of(peer: PeerId) -> ID:
    try:
        return ID.from_string(peer)
    except (ValueError, BaseLibp2pError) as error:
        raise PeerUnavailable(f"{peer!r} is no peer id") from error


def _brief(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
