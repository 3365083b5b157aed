"""A network in memory, on trio's clock: the same port as the real one, with delay, loss of peers and partitions.

Nothing here reads a clock of its own or draws a number but from the `rng` it was given, so that a whole swarm
replays from one seed.
"""

import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from p2pgrid.errors import BadInput, P2pgridError, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.memory_stream import MemoryStream, Pipe
from p2pgrid.net.transport import DHT_KEY_BYTES_MAX, ByteStream, StreamHandler, Transport
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.signing import Identity

log = structlog.get_logger()

PROVIDER_RECORD_S = 600.0

Cut = tuple[frozenset[PeerId], frozenset[PeerId]]


class MemoryNetwork:
    """All peers of one simulated network, and the faults between them.

    `latency_s` and `jitter_s` are one way. `bandwidth_bytes_s` holds for each direction of each stream; None
    is without limit. `dial_s_max` is what a dial into the void (a frozen or partitioned peer) takes.
    """

    def __init__(
        self,
        rng: random.Random,
        latency_s: float = 0.001,
        jitter_s: float = 0.0,
        bandwidth_bytes_s: float | None = None,
        *,
        dial_s_max: float = 4.0,
    ) -> None:
        self._rng = rng
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._bandwidth_bytes_s = bandwidth_bytes_s
        self._dial_s_max = dial_s_max
        self._nodes: dict[PeerId, MemoryTransport] = {}
        self._frozen: set[PeerId] = set()
        self._cuts: list[Cut] = []
        self._extra_s: dict[PeerId, float] = {}
        # key -> peer -> (its addresses, when the record was written)
        self._records: dict[str, dict[PeerId, tuple[Contact, float]]] = {}
        self._ports = 0
        self._changed = trio.Event()

    @asynccontextmanager
    async def open(self, identity: Identity, *, dht_server: bool = True) -> "AsyncIterator[MemoryTransport]":
        """Join the network as `identity`. `dht_server` changes nothing here: the table is the network's own."""
        if identity.peer in self._nodes:
            raise BadInput(f"{identity.peer} is already in this network")
        async with trio.open_nursery() as handlers:
            self._ports += 1
            node = MemoryTransport(self, identity.peer, self._ports, handlers)
            self._nodes[identity.peer] = node
            try:
                yield node
            finally:
                if self._nodes.get(identity.peer) is node:
                    del self._nodes[identity.peer]
                await node.leave()
                handlers.cancel_scope.cancel()

    def kill(self, peer: PeerId) -> None:
        """The peer is gone: its streams break at once, and nobody can dial it."""
        node = self._nodes.pop(peer, None)
        self._frozen.discard(peer)
        if node is not None:
            node.break_streams()

    def disconnect(self, peer: PeerId) -> None:
        """The peer's streams break at once; it can dial and be dialled again."""
        if peer in self._nodes:
            self._nodes[peer].break_streams()

    def freeze(self, peer: PeerId, frozen: bool) -> None:
        """Hold (or let go again) all bytes to and from `peer`; nobody is told."""
        if frozen:
            self._frozen.add(peer)
        else:
            self._frozen.discard(peer)
        self._wake()

    def partition(self, group_a: Collection[PeerId], group_b: Collection[PeerId]) -> Cut:
        """Hold all bytes between the two groups until `heal`."""
        cut = frozenset(group_a), frozenset(group_b)
        self._cuts.append(cut)
        self._wake()
        return cut

    def heal(self, cut: Cut) -> None:
        """End one partition."""
        self._cuts.remove(cut)
        self._wake()

    def delay(self, peer: PeerId, extra_s: float) -> None:
        """From now on all to and from `peer` takes so much longer, one way."""
        self._extra_s[peer] = extra_s

    def held(self, one: PeerId, other: PeerId) -> bool:
        """Whether bytes between these two do not flow now."""
        if one in self._frozen or other in self._frozen:
            return True
        return any((one in a and other in b) or (one in b and other in a) for a, b in self._cuts)

    def delay_s(self, *ends: PeerId) -> float:
        """One way between these, once."""
        extra_s = sum(self._extra_s.get(peer, 0.0) for peer in ends)
        return self._latency_s + extra_s + (self._rng.random() * self._jitter_s if self._jitter_s else 0.0)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for node in self._nodes.values():
            node.wake_streams()

    async def connect(self, dialler: "MemoryTransport", peer: PeerId, protocol: str) -> MemoryStream:
        """A new stream from `dialler` to `peer`, whose handler has been started. Raises PeerUnavailable."""
        await trio.sleep(self.delay_s(dialler.peer, peer) + self.delay_s(dialler.peer, peer))
        with trio.move_on_after(self._dial_s_max):
            while self.held(dialler.peer, peer):
                await self._changed.wait()
        if dialler.peer not in self._nodes:
            raise PeerUnavailable(f"this node has left the network; cannot dial {peer}")
        node = self._nodes.get(peer)
        if node is None:
            raise PeerUnavailable(f"nobody answers as {peer}")
        if self.held(dialler.peer, peer):
            raise PeerUnavailable(f"{peer} did not answer within {self._dial_s_max:g} s")
        handler = node.handlers.get(protocol)
        if handler is None:
            raise PeerUnavailable(f"{peer} does not speak {protocol}")
        there = Pipe(self, dialler.peer, peer, self._bandwidth_bytes_s)
        back = Pipe(self, peer, dialler.peer, self._bandwidth_bytes_s)
        near = MemoryStream(peer, outgoing=there, incoming=back)
        node.start(handler, MemoryStream(dialler.peer, outgoing=back, incoming=there))
        dialler.keep(near)
        return near

    def write_record(self, key: str, contact: Contact) -> None:
        self._records.setdefault(key, {})[contact.peer] = (contact, trio.current_time())

    def read_records(self, key: str) -> list[Contact]:
        """Of the dead too, until their records expire: the real table does not know better either."""
        written_after = trio.current_time() - PROVIDER_RECORD_S
        return [contact for contact, at in self._records.get(key, {}).values() if at >= written_after]


class MemoryTransport:
    """One peer's place in a `MemoryNetwork`; see `net.transport.Transport`."""

    def __init__(self, network: MemoryNetwork, peer: PeerId, port: int, tasks: trio.Nursery) -> None:
        self._network = network
        self._peer = peer
        self._tasks = tasks
        self._addresses = (f"/memory/{port}/p2p/{peer}",)
        # Insertion-ordered, so that breaking and waking happen in the same order on every run.
        self._streams: dict[MemoryStream, None] = {}
        self.handlers: dict[str, StreamHandler] = {}

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self.handlers[protocol] = handler

    async def open_stream(self, contact: Contact, protocol: str) -> ByteStream:
        if contact.peer == self._peer:
            raise PeerUnavailable("a node does not dial itself")
        return await self._network.connect(self, contact.peer, protocol)

    async def announce(self, key: str) -> None:
        _check_key(key)
        await trio.sleep(self._network.delay_s(self._peer))
        self._network.write_record(key, Contact(self._peer, self._addresses))

    async def find_providers(self, key: str) -> list[Contact]:
        _check_key(key)
        await trio.sleep(self._network.delay_s(self._peer) + self._network.delay_s(self._peer))
        return [contact for contact in self._network.read_records(key) if contact.peer != self._peer]

    def keep(self, stream: MemoryStream) -> None:
        """Remember an open stream, so that it breaks when this peer dies."""
        self._streams = {kept: None for kept in self._streams if not kept.is_closed}
        self._streams[stream] = None

    def start(self, handler: StreamHandler, stream: MemoryStream) -> None:
        self.keep(stream)
        self._tasks.start_soon(self._handle, handler, stream)

    def wake_streams(self) -> None:
        for stream in self._streams:
            stream.wake()

    def break_streams(self) -> None:
        for stream in list(self._streams):
            stream.break_off(f"{self._peer} is gone")

    async def leave(self) -> None:
        """Let go of all streams; what was closed politely before still arrives."""
        with trio.CancelScope(shield=True):
            for stream in list(self._streams):
                await stream.reset()

    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except P2pgridError as error:
            log.info("stream from %s reset: %s", stream.peer, error)
            await stream.reset()
        except Exception:  # the owner of the handler's task: no handler may hurt another one
            log.exception("handler of a stream from %s failed", stream.peer)
            await stream.reset()
        finally:
            stream.close_nowait()


def _check_key(key: str) -> None:
    if len(key.encode()) > DHT_KEY_BYTES_MAX:
        raise BadInput(f"the DHT key {key!r} is over {DHT_KEY_BYTES_MAX} bytes")


if TYPE_CHECKING:

    def _is_a_transport(transport: MemoryTransport) -> Transport:
        return transport
