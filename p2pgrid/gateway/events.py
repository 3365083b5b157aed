"""What happens in the swarm, told to whoever looks: server-sent events at `/p2pgrid/events`.

There are no queues. A listener remembers what it was told last and is told what differs from it when it is ready for
more, so a slow one misses what came and went in between, takes no memory for it, and holds up nobody.
"""

from typing import Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from p2pgrid.gateway.faults import too_busy
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.looking import Looker
from p2pgrid.gateway.picture import Picture, changes
from p2pgrid.gateway.watch import Watch
from p2pgrid.ids import ModelId

LISTENERS_MAX = 64
TICK_S = 0.1
"""How often it is looked for changes while somebody listens: for tokens, and for nodes that come and go."""
FIGURES_S = 1.0
"""And for figures, like load and round trips."""
HEARTBEAT_S = 10.0
COME_BACK_S = 5.0


class Events:
    """The events of `gateway`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._looker = Looker(gateway)
        self._listeners = 0
        self._listened = trio.Event()
        self._news = trio.Event()
        self._changes = -1
        self._figures_at_s = 0.0
        self._picture: Picture | None = None

    async def run(self) -> None:
        """Look at the swarm while somebody listens, until cancelled. All streams end when the gateway stops."""
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._end_streams)
            while True:
                await self._listened.wait()
                async with trio.open_nursery() as looking:
                    looking.start_soon(Watch(self._gateway.peer, self._models).run)
                    looking.start_soon(self._looker.learn)
                    while self._listeners:
                        self._tick()
                        await trio.sleep(TICK_S)
                    looking.cancel_scope.cancel()

    async def tell(self, send: Send) -> None:
        """Send a snapshot, then changes, each as one event; return when the gateway stops."""
        self._listeners += 1
        self._listened.set()
        try:
            told = self._looker.look()
            await _send(send, _event("snapshot", told))
            while not self._gateway.stopping.is_set():
                now, news = self._picture or told, self._news
                if now != told:
                    await _send(send, _event("change", changes(told, now)))
                    told = now
                    continue
                with trio.move_on_after(HEARTBEAT_S) as silence:
                    await news.wait()
                if silence.cancelled_caught:
                    await _send(send, b": nothing new\n\n")
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._listened = trio.Event()
                self._picture = None

    @property
    def full(self) -> bool:
        """Whether as many listen as may."""
        return self._listeners >= LISTENERS_MAX

    def _models(self) -> list[ModelId]:
        return [survey.id for survey in self._gateway.models.surveys()]

    async def _end_streams(self) -> None:
        await self._gateway.stopping.wait()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _tick(self) -> None:
        """Take a new picture if there may be anything new on it, and wake the listeners if there is."""
        now, before, known = trio.current_time(), self._picture, self._gateway.peer.view.changes
        if before is None or known != self._changes or now >= self._figures_at_s:
            picture = self._looker.look()
            self._changes, self._figures_at_s = known, now + FIGURES_S
        else:
            picture = msgspec.structs.replace(before, sessions=self._looker.sessions())
        if picture != before:
            self._picture = picture
            self._wake()


class EventStream(Response):
    """The response to one listener."""

    media_type = "text/event-stream"

    def __init__(self, gateway: Gateway, events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._gateway = gateway
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.replying():
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with trio.open_nursery() as tasks:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                await self._events.tell(send)
                tasks.cancel_scope.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def routes(gateway: Gateway, events: Events) -> list[Route]:
    async def listen(request: Request) -> Response:
        gateway.access.admit(request, "models")
        if events.full:
            raise too_busy(f"{LISTENERS_MAX} pages follow the swarm here already: close another one", COME_BACK_S)
        return EventStream(gateway, events)

    return [Route("/p2pgrid/events", listen)]


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
