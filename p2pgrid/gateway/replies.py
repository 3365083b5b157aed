"""Answers on their way to the client: whole, as one JSON document, or piece by piece, as server-sent events."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2pgrid.gateway.answering import Asked, Done, Ended, Event, answer_all, while_client_is_there
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.gateway import Gateway

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Shape(Protocol):
    """How answers look at one endpoint."""

    def whole(self, asked: Asked, done: Sequence[Done]) -> msgspec.Struct:
        """The document of all choices."""

    def chunks(self, asked: Asked, events: Sequence[Event]) -> Iterable[msgspec.Struct]:
        """What a stream says of `events`, which came since it last said something."""

    def last_chunks(self, asked: Asked, done: Sequence[Done]) -> Iterable[msgspec.Struct]:
        """What it says when all choices are complete."""


class WholeReply:
    """An ASGI response: one document when all is there. Raises ApiError before it begins."""

    def __init__(self, gateway: Gateway, asked: Asked, shape: Shape) -> None:
        self._gateway = gateway
        self._asked = asked
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        done: dict[int, Done] = {}

        def take(event: Event) -> None:
            if isinstance(event, Ended):
                done[event.index] = event.done

        async def work() -> None:
            await answer_all(self._gateway, self._asked, take)

        with self._gateway.replying():
            await while_client_is_there(self._gateway, receive, work)
        if len(done) == len(self._asked.requests):  # else nobody is there any more
            document = self._shape.whole(self._asked, _in_order(done))
            response = Response(msgspec.json.encode(document), media_type="application/json")
            await response(scope, receive, send)


class StreamedReply:
    """An ASGI response: events as they come.

    It begins when a session is open, so that whoever is refused before that gets a status that says so; later the
    error is the last event. A reader who is slow gets more text at a time: no answer waits for it, and what is kept
    for it is never more than the answer.
    """

    def __init__(self, gateway: Gateway, asked: Asked, shape: Shape) -> None:
        self._gateway = gateway
        self._asked = asked
        self._shape = shape
        self._waiting: list[Event] = []
        self._done: dict[int, Done] = {}
        self._failed: ApiError | None = None
        self._over = False
        self._news = trio.Event()
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._answer)
                await self._write(send)
            if self._failed is not None:
                raise self._failed

        with self._gateway.replying():
            try:
                await while_client_is_there(self._gateway, receive, work)
            except ApiError as error:
                if not self._begun:
                    raise
                last = _event(error.document)
            else:
                if len(self._done) < len(self._asked.requests):
                    return  # nobody is there any more
                chunks = self._shape.last_chunks(self._asked, _in_order(self._done))
                last = b"".join([*map(_event, chunks), DONE])
            # Only now: a complete reply counts as a client who has left, and that would cut its own end short.
            await _send_body(send, last, more=False)

    async def _answer(self) -> None:
        try:
            await answer_all(self._gateway, self._asked, self._take)
        except ApiError as error:
            self._failed = error
        self._over = True
        self._news.set()

    def _take(self, event: Event) -> None:
        if isinstance(event, Ended):
            self._done[event.index] = event.done
        self._waiting.append(event)
        self._news.set()

    async def _write(self, send: Send) -> None:
        """All that comes until the last answer is over."""
        while self._waiting or not self._over:
            await self._news.wait()
            self._news = trio.Event()
            events, self._waiting = self._waiting, []
            if events and not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            if said := b"".join(map(_event, self._shape.chunks(self._asked, events))):
                await _send_body(send, said, more=True)


def _event(document: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _in_order(done: dict[int, Done]) -> list[Done]:
    return [done[index] for index in sorted(done)]
