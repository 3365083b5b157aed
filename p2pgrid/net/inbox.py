"""What was read from one link and waits to be handed over."""

from collections import deque

import trio

from p2pgrid.wire.messages import SessionMessage


class Inbox:
    """Messages with their cost, first in, first out. A reason in place of a message: it was the last one."""

    def __init__(self) -> None:
        self._items: deque[tuple[SessionMessage | str, int]] = deque()
        self._arrived = trio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: SessionMessage | str, cost: int = 0) -> None:
        self._items.append((item, cost))
        self._arrived.set()

    async def arrival(self) -> None:
        """Return when there is something to take."""
        while not self._items:
            self._arrived = trio.Event()
            await self._arrived.wait()

    def take(self) -> tuple[SessionMessage | str, int]:
        return self._items.popleft()
