"""One question, one answer: a stream that carries a single framed request and a single framed reply."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.wire.codec import HEADER, FrameBuffer, decode, encode
from p2pgrid.wire.messages import Contact

EXCHANGE_BYTES_MAX = 2 * 1024 * 1024

Request = TypeVar("Request")


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
            await stream.send_all(_frame(request))
            answer = decode(await _read_frame(stream, peer), answer_type)
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
        request: Request = decode(await _read_frame(stream, stream.peer), request_type)
        await stream.send_all(_frame(await handler(request)))
        await stream.aclose()
        return
    raise PeerUnavailable(f"an exchange with {stream.peer} took over {deadline_s:g} s")


def _frame(message: msgspec.Struct) -> bytes:
    payload = encode(message)
    if len(payload) > EXCHANGE_BYTES_MAX:
        raise ValueError(f"a message of {len(payload)} bytes is over the limit of {EXCHANGE_BYTES_MAX}")
    return HEADER.pack(len(payload)) + payload


async def _read_frame(stream: ByteStream, peer: PeerId) -> bytes:
    frames = FrameBuffer(EXCHANGE_BYTES_MAX)
    while data := await stream.receive_some():
        payloads = frames.feed(data)
        if len(payloads) > 1 or (payloads and frames.pending_bytes):
            raise PeerMisbehaved(f"{peer} sent more than one message")
        if payloads:
            return payloads[0]
    raise PeerUnavailable(f"{peer} closed the stream in the middle of an exchange")
