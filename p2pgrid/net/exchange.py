"""Framed messages over a stream, one after another; and the usual case, one question and one answer."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.wire.codec import HEADER, FrameBuffer, decode, encode
from p2pgrid.wire.messages import Contact

EXCHANGE_BYTES_MAX = 2 * 1024 * 1024

Request = TypeVar("Request")


class Conversation:
    """Messages over `stream`, which stays its owner's."""

    def __init__(self, stream: ByteStream, patience_s: float = math.inf) -> None:
        """`patience_s` is how long a message may be waited for."""
        self._stream = stream
        self._patience_s = patience_s
        self._frames = FrameBuffer(EXCHANGE_BYTES_MAX)
        self._arrived: deque[bytes] = deque()

    async def send(self, message: msgspec.Struct) -> None:
        """Raises PeerUnavailable when the peer is gone."""
        payload = encode(message)
        if len(payload) > EXCHANGE_BYTES_MAX:
            raise ValueError(f"a message of {len(payload)} bytes is over the limit of {EXCHANGE_BYTES_MAX}")
        await self._stream.send_all(HEADER.pack(len(payload)) + payload)

    async def receive(self, types: Any) -> Any:
        """The next message, one of `types` (a struct or a union of structs).

        Raises PeerMisbehaved when it is none, PeerUnavailable when the peer is gone or says nothing.
        """
        peer = self._stream.peer
        with trio.move_on_after(self._patience_s) as patience:
            while not self._arrived:
                data = await self._stream.receive_some()
                if not data:
                    raise PeerUnavailable(f"{peer} closed the stream in the middle of an exchange", peer)
                self._arrived += self._frames.feed(data)
        if patience.cancelled_caught:
            raise PeerUnavailable(f"{peer} said nothing for {self._patience_s:g} s", peer)
        return decode(self._arrived.popleft(), types)

    async def finished(self) -> None:
        """The peer has no more to say. Raises as `receive`."""
        with trio.move_on_after(self._patience_s):
            self._arrived += self._frames.feed(await self._stream.receive_some())
            self.check_over()
            return
        raise PeerUnavailable(f"{self._stream.peer} said nothing for {self._patience_s:g} s", self._stream.peer)

    def check_over(self) -> None:
        """Raises PeerMisbehaved when more came than was taken."""
        if self._arrived or self._frames.pending_bytes:
            raise PeerMisbehaved(f"{self._stream.peer} sent more than it was asked for")


async def ask(
    transport: Transport,
    contact: Contact,
    protocol: str,
    request: msgspec.Struct,
    answer_type: Any,
    *,
    deadline_s: float,
) -> Any:
    """The peer's answer, which is one of `answer_type` (a struct or a union of structs).

    Raises PeerUnavailable when there is none within `deadline_s`, dialling included, and PeerMisbehaved when
    it is something else.
    """
    peer = contact.peer
    with trio.move_on_after(deadline_s):
        stream = await transport.open_stream(contact, protocol)
        answered = False
        try:
            conversation = Conversation(stream)
            await conversation.send(request)
            answer = await conversation.receive(answer_type)
            conversation.check_over()
            answered = True
        finally:
            with trio.CancelScope(shield=True):
                await (stream.aclose() if answered else stream.reset())
        return answer
    raise PeerUnavailable(f"{peer} did not answer {protocol} within {deadline_s:g} s")


async def answer(
    stream: ByteStream,
    request_type: type[Request] | Any,
    handler: Callable[[Request], Awaitable[msgspec.Struct]],
    *,
    deadline_s: float,
) -> None:
    """Read one request from `stream`, answer it with what `handler` returns, and close.

    Raises PeerMisbehaved when the request is none, PeerUnavailable when it does not come within `deadline_s`
    or the peer does not take the answer. The transport resets the stream then.
    """
    with trio.move_on_after(deadline_s):
        conversation = Conversation(stream)
        request: Request = await conversation.receive(request_type)
        conversation.check_over()
        await conversation.send(await handler(request))
        await stream.aclose()
        return
    raise PeerUnavailable(f"an exchange with {stream.peer} took over {deadline_s:g} s")
