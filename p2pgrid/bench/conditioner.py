"""A link of chosen delay, rate and faults in front of a node: a TCP proxy on loopback that takes its time."""

import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from p2pgrid.bench.line import STALL_S, Line
from p2pgrid.bench.profiles import Profile

HOST = "127.0.0.1"
PORTS_NOT_GIVEN_AWAY = range(10_000, 32_768)
"""Linux takes ports for outgoing connections, and for listeners that ask for any, from 32768 on."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_LINGER_NOT = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing the socket breaks the connection instead of finishing it."""


@dataclass
class Passed:
    """Bytes that went through."""

    up: int = 0
    down: int = 0


class Conditioner:
    """The link in front of one node; made by `open_conditioner`. Others dial `port` instead of the node's own."""

    def __init__(self, profile: Profile, node_port: int, rng: random.Random) -> None:
        self.profile = profile
        self.port = 0
        self.passed = Passed()
        self._node_port = node_port
        self._up = Line(profile, profile.up_bytes_s, rng)
        self._down = Line(profile, profile.down_bytes_s, rng)
        self._whole = trio.Event()
        self._whole.set()
        self._connections: set[trio.CancelScope] = set()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def partition(self) -> None:
        """From now on nothing passes, and nobody is told: as with a cable that was pulled."""
        if self._whole.is_set():
            self._whole = trio.Event()

    def heal(self) -> None:
        """Pass on again, first what was held back."""
        self._whole.set()

    def reset(self) -> None:
        """Break every connection that is open. New ones are possible at once."""
        for connection in list(self._connections):
            connection.cancel()

    async def wait_whole(self) -> None:
        while not self._whole.is_set():
            await self._whole.wait()

    async def carry(self, outside: trio.SocketStream) -> None:
        """One connection that somebody outside opened, to its end; the handler of the listener."""
        streams = [outside]
        finished = False
        scope = trio.CancelScope()
        self._connections.add(scope)
        try:
            with scope:
                # The handshake with this proxy took no time; with the node it would have taken a round trip.
                await trio.sleep(self.profile.rtt_s)
                await self.wait_whole()
                node = await trio.open_tcp_stream(HOST, self._node_port)
                streams.append(node)
                async with trio.open_nursery() as tasks:
                    down = _Pump(outside, node, self._down, self, self._count_down, scope.cancel)
                    up = _Pump(node, outside, self._up, self, self._count_up, scope.cancel)
                    tasks.start_soon(down.run)
                    tasks.start_soon(up.run)
                finished = True
        except OSError:
            return  # the node takes no connection, so whoever dialled it through us loses theirs
        finally:
            self._connections.discard(scope)
            for stream in streams:
                _let_go(stream, finished)

    def _count_up(self, nbytes: int) -> None:
        self.passed.up += nbytes

    def _count_down(self, nbytes: int) -> None:
        self.passed.down += nbytes


@asynccontextmanager
async def open_conditioner(profile: Profile, node_port: int, rng: random.Random) -> AsyncIterator[Conditioner]:
    """A link to the port `node_port` of this machine; all its connections break with the context."""
    conditioner = Conditioner(profile, node_port, rng)
    async with trio.open_nursery() as tasks:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        conditioner.port = listener.socket.getsockname()[1]
        tasks.start_soon(trio.serve_listeners, conditioner.carry, [listener])
        yield conditioner
        tasks.cancel_scope.cancel()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now, for processes that must be told theirs before they start.

    Not of those that the system gives away: meanwhile it could give one to somebody else's connection.
    """
    untold = random.SystemRandom()
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind((HOST, untold.choice(PORTS_NOT_GIVEN_AWAY)))
                found.append(probe.getsockname()[1])
        return found


class _Pump:
    """One direction of one connection: what comes in goes out when the line has brought it there."""

    def __init__(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        line: Line,
        conditioner: Conditioner,
        count: Callable[[int], None],
        break_off: Callable[[], None],
    ) -> None:
        self._source = source
        self._sink = sink
        self._line = line
        self._conditioner = conditioner
        self._count = count
        self._break_off = break_off
        self._on_its_way: deque[tuple[float, bytes]] = deque()
        """Each with its time of arrival, which never falls; `b""` is the end."""
        self._held_bytes = 0
        self._broken = False
        self._came = trio.Event()
        self._went = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._take)
            await self._give()
            tasks.cancel_scope.cancel()

    async def _take(self) -> None:
        line = self._line
        try:
            while data := await self._source.receive_some(line.chunk_bytes):
                stall_s = 0.0
                if line.loses(len(data)):
                    if line.resets_on_loss:
                        self._break_off()
                        return
                    stall_s = STALL_S
                self._put(bytes(data), stall_s)
                while self._held_bytes >= line.held_bytes_max:
                    self._went = trio.Event()
                    await self._went.wait()
        except _GONE:
            self._broken = True
        self._put(b"", 0.0)

    def _put(self, data: bytes, stall_s: float) -> None:
        arrival = self._line.arrival(len(data), trio.current_time()) + stall_s
        if self._on_its_way:
            arrival = max(arrival, self._on_its_way[-1][0])
        self._on_its_way.append((arrival, data))
        self._held_bytes += len(data)
        self._came.set()

    async def _give(self) -> None:
        try:
            while True:
                data, ended = await self._next()
                if data:
                    await self._sink.send_all(data)
                    self._count(len(data))
                    self._held_bytes -= len(data)
                    self._went.set()
                if ended and self._broken:
                    self._break_off()
                    return
                if ended:
                    await self._sink.send_eof()
                    return
        except _GONE:
            await trio.sleep(self._line.one_way_s)  # until the sender can know of it
            self._break_off()

    async def _next(self) -> tuple[bytes, bool]:
        """All that has arrived, once something has, and whether that was the last."""
        while not self._on_its_way:
            self._came = trio.Event()
            await self._came.wait()
        due_s = self._on_its_way[0][0]
        if trio.current_time() < due_s:  # else it had to queue here, which says nothing of timers
            await trio.sleep_until(due_s - self._line.lead_s)
            self._line.woken(trio.current_time() - due_s)
        await self._conditioner.wait_whole()
        now = trio.current_time() + self._line.lead_s
        arrived: list[bytes] = []
        while self._on_its_way and (self._on_its_way[0][0] <= now or not arrived):
            data = self._on_its_way.popleft()[1]
            if not data:
                return b"".join(arrived), True
            arrived.append(data)
        return b"".join(arrived), False


def _let_go(stream: trio.SocketStream, finished: bool) -> None:
    """Close at once, without a turn of the scheduler in which a cancellation could leave others open."""
    try:
        if not finished:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    finally:
        stream.socket.close()
