"""A gateway to a swarm of toy stages, and a client that calls it without a socket."""

import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio
from starlette.types import ASGIApp

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.gateway.access import Access
from p2pgrid.gateway.app import make_app
from p2pgrid.gateway.events import Events
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.models import Models
from p2pgrid.ids import ModelId
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import ModelDescription
from p2pgrid.node.peer import Peer
from tests.swarm_kit import MODEL, Life, cut, joined, living, wall
from tests.toy_model import CONTEXT_MAX, DESCRIPTION

NAME = "toy"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class Reply:
    """What came back until now."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    closed: bool = False
    """The server came to the end of it: it must not be cut short in that."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        document: dict[str, Any] = self.json["error"]
        assert set(document) == {"message", "type", "param", "code"}
        return document

    @property
    def events(self) -> list[Any]:
        """Of a stream, without the last mark, which must be there when no error ended it."""
        assert self.headers["content-type"].startswith("text/event-stream")
        said = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        found = [json.loads(line) for line in said if line != "[DONE]"]
        assert said[-1] == "[DONE]" or "error" in found[-1]
        return found


class Call:
    """One request on its way. `take` lets so many parts of the reply through; without it all are taken."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.gone = trio.Event()
        self.news = trio.Event()
        self.stalled = False
        self.resume = trio.Event()

    async def heard(self, nbytes: int) -> None:
        """Wait for so much of the reply's body."""
        with trio.fail_after(60):
            while len(self.reply.body) < nbytes:
                await self.news.wait()
                self.news = trio.Event()

    async def send(self, message: Mapping[str, Any]) -> None:
        if self.stalled:
            await self.resume.wait()
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.reply.body += message.get("body", b"")
            self.reply.complete = not message.get("more_body", False)
        self.news.set()
        if self.reply.complete:
            await self._close()

    async def _close(self) -> None:
        """As hypercorn does it: the application hears that the client has left, then the connection is seen to."""
        self.gone.set()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        self.reply.closed = True


@dataclass
class Door:
    """A gateway and its swarm."""

    gateway: Gateway
    app: ASGIApp
    lives: list[Life]
    network: MemoryNetwork

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.ask("GET", path, headers=headers)

    async def post(self, path: str, document: Any, **headers: str) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self.ask("POST", path, body, headers=headers)

    async def chat(self, **fields: Any) -> Reply:
        return await self.post("/v1/chat/completions", {"model": NAME, "messages": HELLO, "temperature": 0, **fields})

    def begin_chat(self, tasks: trio.Nursery, **fields: Any) -> Call:
        """A chat on its way, in a task of its own."""
        body = json.dumps({"model": NAME, "messages": HELLO, "temperature": 0, **fields}).encode()
        call = Call()
        tasks.start_soon(lambda: self.ask("POST", "/v1/chat/completions", body, call=call))
        return call

    async def complete(self, **fields: Any) -> Reply:
        return await self.post("/v1/completions", {"model": NAME, "prompt": "hello", "temperature": 0, **fields})

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = b"",
        *,
        headers: Mapping[str, str] | None = None,
        call: Call | None = None,
    ) -> Reply:
        """Send a request and return its reply; `call`, if given, is that of a client who may stall or go away.

        A body of None never comes.
        """
        call = call or Call()
        parts = [body[at : at + 65_536] for at in range(0, len(body), 65_536)] or [b""] if body is not None else []

        async def receive() -> dict[str, Any]:
            if parts:
                await trio.lowlevel.checkpoint()
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await call.gone.wait()
            return {"type": "http.disconnect"}

        given = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        sent = {"content-type": "application/json", **given}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.1"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        with trio.fail_after(300):
            await self.app(scope, receive, call.send)
        assert call.reply.closed == call.reply.complete
        return call.reply

    def beside(self, life: Life) -> "Door":
        """Another gateway to the same swarm, in the process of one of its nodes."""
        gateway = Gateway(life.peer, _models(life.peer), Access(wall))
        return replace(self, gateway=gateway, app=make_app(gateway, Events(gateway)))

    @property
    def sessions_open(self) -> list[int]:
        """At each node, KV rows that are not free."""
        return [life.peer.worker.sessions_open for life in self.lives if life.peer.worker is not None]


@asynccontextmanager
async def door(
    nodes: int = 2,
    *,
    access: Access | None = None,
    rows: int = 8,
    cost_s: float = 0.001,
    description: ModelDescription = DESCRIPTION,
    **parts: Any,
) -> AsyncIterator[Door]:
    """A gateway that serves the toy model of that many nodes, twice each layer for 4 nodes."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        spans = cut(2)
        lives = [
            await stack.enter_async_context(
                living(network, number, spans[number % 2], rows=rows, cost_s=cost_s, context_max=CONTEXT_MAX)
            )
            for number in range(nodes)
        ]
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        gateway = Gateway(client, _models(client, description), access or Access(wall), **parts)
        if nodes:
            assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == nodes, 6)
        yield Door(gateway, make_app(gateway, Events(gateway)), lives, network)


def _models(peer: Peer, description: ModelDescription = DESCRIPTION) -> Models:
    async def describe(model: ModelId) -> ModelDescription:
        return description

    return Models(peer, {MODEL: NAME}, describe, InlineExecutor())
