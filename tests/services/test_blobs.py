"""Blobs between peers, honest and otherwise."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings

from p2pgrid.errors import PeerUnavailable
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.memory_transport import MemoryNetwork, MemoryTransport
from p2pgrid.net.transport import ByteStream
from p2pgrid.services.blobs import BLOB_BYTES_MAX, BlobServer, fetch_blob
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.transfer_messages import BLOB_PIECE_BYTES_MAX, BLOB_PROTOCOL, BlobMissing, BlobPiece, BlobRequest
from tests.net.hostile import assert_survives, payloads
from tests.net.peers import identity

Reply = Callable[[BlobRequest], BlobPiece | BlobMissing]


def digest_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def contact(transport: MemoryTransport) -> Contact:
    return Contact(transport.peer, transport.addresses)


class Swarm:
    """A client's transport, and peers that serve blobs in their own ways."""

    def __init__(self, network: MemoryNetwork, client: MemoryTransport) -> None:
        self.network = network
        self.client = client
        self.servers: list[MemoryTransport] = []
        self.requests: list[tuple[int, BlobRequest]] = []
        """Who was asked (its place among the servers), and for what."""

    @property
    def contacts(self) -> list[Contact]:
        return [contact(server) for server in self.servers]


@asynccontextmanager
async def swarm(*servers: Mapping[str, bytes] | Reply) -> AsyncIterator[Swarm]:
    """A mapping is served by the real server, a function instead of it."""
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(900)) as client, trio.open_nursery() as tasks:
        built = Swarm(network, client)
        for number, server in enumerate(servers):
            await tasks.start(_serve, built, number, server)
        yield built
        tasks.cancel_scope.cancel()


async def _serve(
    built: Swarm,
    number: int,
    server: Mapping[str, bytes] | Reply,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    async with built.network.open(identity(number)) as transport:
        if callable(server):
            reply = server

            async def handle(request: BlobRequest) -> BlobPiece | BlobMissing:
                built.requests.append((number, request))
                return reply(request)

            async def serve_stream(stream: ByteStream) -> None:
                await answer(stream, BlobRequest, handle, deadline_s=5)

            transport.serve(BLOB_PROTOCOL, serve_stream)
        else:
            BlobServer(transport, server.get)
        built.servers.append(transport)
        task_status.started()
        await trio.sleep_forever()


BLOB = random.Random(5).randbytes(2 * BLOB_PIECE_BYTES_MAX + 12_345)
SMALL = b"a manifest"


@pytest.mark.parametrize("blob", [BLOB, BLOB[: 2 * BLOB_PIECE_BYTES_MAX], SMALL, b""], ids=len)
async def test_a_blob_arrives_in_pieces_and_whole(blob: bytes, autojump_clock: trio.abc.Clock) -> None:
    async with swarm({digest_of(blob): blob}) as peers:
        assert await fetch_blob(peers.client, peers.contacts, digest_of(blob)) == blob


async def test_each_piece_is_asked_for_once(autojump_clock: trio.abc.Clock) -> None:
    def honest(request: BlobRequest) -> BlobPiece:
        return BlobPiece(len(BLOB), BLOB[request.offset : request.offset + request.nbytes])

    async with swarm(honest) as peers:
        assert await fetch_blob(peers.client, peers.contacts, digest_of(BLOB)) == BLOB
        offsets = [request.offset for _, request in peers.requests]
        assert offsets == [0, BLOB_PIECE_BYTES_MAX, 2 * BLOB_PIECE_BYTES_MAX]


LIES: dict[str, Reply] = {
    "another content": lambda request: BlobPiece(len(SMALL), b"A MANIFEST"),
    "nothing of something": lambda request: BlobPiece(len(SMALL), b""),
    "too much": lambda request: BlobPiece(len(SMALL), SMALL + SMALL),
    "too large for memory": lambda request: BlobPiece(BLOB_BYTES_MAX + 1, bytes(BLOB_PIECE_BYTES_MAX)),
    "a size that changes": lambda request: BlobPiece(
        3 * BLOB_PIECE_BYTES_MAX - request.offset, bytes(BLOB_PIECE_BYTES_MAX)
    ),
    "drop by drop": lambda request: BlobPiece(BLOB_BYTES_MAX, b"."),
    "not here": lambda request: BlobMissing(),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_peer_that_gives_it_wrongly_is_passed_over(lie: str, autojump_clock: trio.abc.Clock) -> None:
    async with swarm(LIES[lie], {digest_of(SMALL): SMALL}) as peers:
        assert await fetch_blob(peers.client, peers.contacts, digest_of(SMALL)) == SMALL
        assert len(peers.requests) <= 2, "a liar is noticed at once"


async def test_when_nobody_gives_it_the_error_says_what_each_one_did(autojump_clock: trio.abc.Clock) -> None:
    async with swarm({}, LIES["another content"]) as peers:
        gone = Contact(identity(50).peer)
        with pytest.raises(PeerUnavailable) as raised:
            await fetch_blob(peers.client, [gone, *peers.contacts], digest_of(SMALL))
        said = str(raised.value)
        assert f"nobody gave blob {digest_of(SMALL)[:12]}" in said
        for part in (f"{gone.peer}: nobody answers", "it does not have it", "a blob that is not"):
            assert part in said


async def test_with_nobody_to_ask_the_error_says_so(autojump_clock: trio.abc.Clock) -> None:
    async with swarm() as peers:
        with pytest.raises(PeerUnavailable, match="no peer to ask"):
            await fetch_blob(peers.client, [], digest_of(SMALL))


async def test_a_peer_that_never_answers_is_passed_over(autojump_clock: trio.abc.Clock) -> None:
    async with swarm({digest_of(SMALL): SMALL}, {digest_of(SMALL): SMALL}) as peers:
        peers.network.freeze(peers.contacts[0].peer, True)
        started_s = trio.current_time()
        assert await fetch_blob(peers.client, peers.contacts, digest_of(SMALL)) == SMALL
        assert trio.current_time() - started_s < 11


async def test_only_what_read_gives_is_given_away(autojump_clock: trio.abc.Clock) -> None:
    asked: list[str] = []
    private = b"not for everybody"

    def read(digest: str) -> bytes | None:
        asked.append(digest)
        return SMALL if digest == digest_of(SMALL) else None

    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as transport, network.open(identity(2)) as client:
        BlobServer(transport, read)
        with pytest.raises(PeerUnavailable, match="does not have it"):
            await fetch_blob(client, [contact(transport)], digest_of(private))
        assert asked == [digest_of(private)]


async def test_a_request_past_the_end_gets_nothing_but_the_size(autojump_clock: trio.abc.Clock) -> None:
    async with swarm({digest_of(SMALL): SMALL}) as peers:
        for offset in (len(SMALL), 2**63 - 1):
            request = BlobRequest(digest_of(SMALL), offset, 100)
            reply = await ask(peers.client, peers.contacts[0], BLOB_PROTOCOL, request, BlobPiece, deadline_s=5)
            assert reply == BlobPiece(len(SMALL), b"")


@given(payloads=payloads())
@settings(max_examples=50, deadline=None)
def test_no_bytes_hurt_a_server_of_blobs(payloads: list[bytes]) -> None:
    async def main() -> None:
        async with swarm({digest_of(SMALL): SMALL}) as peers, peers.network.open(identity(70)) as rogue:
            await assert_survives(peers.servers[0], rogue, BLOB_PROTOCOL, payloads)
            assert await fetch_blob(peers.client, peers.contacts, digest_of(SMALL)) == SMALL

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
