"""One request, one answer."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.transfer_messages import BLOB_PROTOCOL, BlobMissing, BlobPiece, BlobRequest
from tests.net.hostile import assert_survives, payloads
from tests.net.peers import identity

REQUEST = BlobRequest("0" * 64, 5, 1000)
ANSWERS = BlobPiece | BlobMissing


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Transport, Transport]]:
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        yield a, b


async def give(request: BlobRequest) -> msgspec.Struct:
    return BlobPiece(request.offset + request.nbytes, bytes(request.nbytes))


async def serve(stream: ByteStream) -> None:
    await answer(stream, BlobRequest, give, deadline_s=5)


async def ask_for_blob(asker: Transport, peer: Transport, deadline_s: float = 3) -> ANSWERS:
    contact = Contact(peer.peer, peer.addresses)
    reply: ANSWERS = await ask(asker, contact, BLOB_PROTOCOL, REQUEST, ANSWERS, deadline_s=deadline_s)
    return reply


async def test_a_request_gets_its_answer(autojump_clock: trio.abc.Clock) -> None:
    async with pair() as (a, b):
        a.serve(BLOB_PROTOCOL, serve)
        assert await ask_for_blob(b, a) == BlobPiece(1005, bytes(1000))


async def test_no_answer_in_time_is_peer_unavailable(autojump_clock: trio.abc.Clock) -> None:
    async def dawdle(stream: ByteStream) -> None:
        await trio.sleep(100)

    async with pair() as (a, b):
        a.serve(BLOB_PROTOCOL, dawdle)
        started = trio.current_time()
        with pytest.raises(PeerUnavailable, match="within 3 s"):
            await ask_for_blob(b, a)
        assert trio.current_time() - started == pytest.approx(3)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"", PeerUnavailable),
        (frame(BlobMissing())[:-1], PeerUnavailable),
        (frame(REQUEST), PeerMisbehaved),
        (frame(BlobMissing()) * 2, PeerMisbehaved),
        (b"\xff\xff\xff\xff", PeerMisbehaved),
        (b"\x00\x20\x00\x01", PeerMisbehaved),
    ],
)
async def test_any_other_answer_is_an_error(
    autojump_clock: trio.abc.Clock, reply: bytes, expected: type[Exception]
) -> None:
    async def say(stream: ByteStream) -> None:
        await stream.send_all(reply)

    async with pair() as (a, b):
        a.serve(BLOB_PROTOCOL, say)
        with pytest.raises(expected):
            await ask_for_blob(b, a)


async def test_a_request_that_never_comes_is_given_up(autojump_clock: trio.abc.Clock) -> None:
    async with pair() as (a, b):
        a.serve(BLOB_PROTOCOL, serve)
        stream = await b.open_stream(Contact(a.peer), BLOB_PROTOCOL)
        started = trio.current_time()
        with pytest.raises(PeerUnavailable):
            await stream.receive_some()
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)


@given(payloads=payloads())
@settings(max_examples=50, deadline=None)
def test_no_bytes_hurt_an_answering_node(payloads: list[bytes]) -> None:
    async def main() -> None:
        async with pair() as (a, b):
            a.serve(BLOB_PROTOCOL, serve)
            await assert_survives(a, b, BLOB_PROTOCOL, payloads)
            assert isinstance(await ask_for_blob(b, a), BlobPiece)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
