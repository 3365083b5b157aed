"""The link of a node to itself: no stream, no encoding, the same flow control and the same order."""

from collections import deque

import msgspec
import trio

from p2pgrid.ids import PeerId
from p2pgrid.net.delivery import Delivery, OnMessage, once
from p2pgrid.net.link_state import cost_of
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.messages import SessionMessage, Step


class Loopback:
    """Messages of a node to itself. At most `window_bytes` of them wait to be consumed."""

    def __init__(self, peer: PeerId, window_bytes: int, tracer: Tracer = NO_TRACE) -> None:
        self._peer = peer
        self._tracer = tracer
        self._room_bytes = self._window_bytes = window_bytes
        self._inbox: deque[tuple[SessionMessage, int]] = deque()
        self._sending = trio.Lock()
        self._room = trio.Event()
        self._arrived = trio.Event()

    async def send(self, message: SessionMessage) -> None:
        """Queue one message; waits for room."""
        cost = self._cost_of(message)
        async with self._sending:
            while self._room_bytes < cost:
                self._room = trio.Event()
                await self._room.wait()
            self._enqueue(message, cost)

    def try_send(self, message: SessionMessage) -> bool:
        """Queue one message now; False when it would have to wait, be it behind others."""
        cost = self._cost_of(message)
        if self._sending.locked() or self._room_bytes < cost:
            return False
        self._enqueue(message, cost)
        return True

    def _cost_of(self, message: SessionMessage) -> int:
        return min(_size_of(message), self._window_bytes)

    def _enqueue(self, message: SessionMessage, cost: int) -> None:
        self._room_bytes -= cost
        self._inbox.append((message, cost))
        self._arrived.set()
        self._note("queued", message)

    def _note(self, event: str, message: SessionMessage) -> None:
        if self._tracer is not NO_TRACE and isinstance(message, Step):
            self._tracer.note(event, message.session, message.position)

    async def run(self, on_message: OnMessage) -> None:
        while True:
            while not self._inbox:
                self._arrived = trio.Event()
                await self._arrived.wait()
            message, cost = self._inbox.popleft()
            self._note("delivered", message)
            await on_message(Delivery(self._peer, message, once(self._consumed, cost)))

    def _consumed(self, cost: int) -> None:
        self._room_bytes += cost
        self._room.set()


def _size_of(message: SessionMessage) -> int:
    """About what the frame of `message` would take: its binary fields are what is large."""
    fields = (getattr(message, name) for name in msgspec.structs.asdict(message))
    return cost_of(sum(len(field) for field in fields if isinstance(field, bytes)))
