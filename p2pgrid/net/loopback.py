"""The link of a node to itself: no stream, no encoding, the same flow control and the same order."""

from collections import deque
from collections.abc import Callable

import msgspec
import trio

from p2pgrid.ids import PeerId
from p2pgrid.net.link import Delivery, OnMessage
from p2pgrid.net.link_state import cost_of
from p2pgrid.wire.messages import SessionMessage


class Loopback:
    """Messages of a node to itself. At most `window_bytes` of them wait to be consumed."""

    def __init__(self, peer: PeerId, window_bytes: int) -> None:
        self._peer = peer
        self._room_bytes = self._window_bytes = window_bytes
        self._inbox: deque[tuple[SessionMessage, int]] = deque()
        self._sending = trio.Lock()
        self._room = trio.Event()
        self._arrived = trio.Event()

    async def send(self, message: SessionMessage) -> None:
        cost = min(_size_of(message), self._window_bytes)
        async with self._sending:
            while self._room_bytes < cost:
                self._room = trio.Event()
                await self._room.wait()
            self._room_bytes -= cost
            self._inbox.append((message, cost))
            self._arrived.set()

    async def run(self, on_message: OnMessage) -> None:
        while True:
            while not self._inbox:
                self._arrived = trio.Event()
                await self._arrived.wait()
            message, cost = self._inbox.popleft()
            await on_message(Delivery(self._peer, message, self._releaser(cost)))

    def _releaser(self, cost: int) -> Callable[[], None]:
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._room_bytes += cost
                self._room.set()

        return release


def _size_of(message: SessionMessage) -> int:
    """About what the frame of `message` would take: its binary fields are what is large."""
    fields = (getattr(message, name) for name in msgspec.structs.asdict(message))
    return cost_of(sum(len(field) for field in fields if isinstance(field, bytes)))
