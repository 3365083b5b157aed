"""Small content-addressed blobs between peers: a model's manifest and tokenizer, for clients without the model."""

import hashlib
from collections.abc import Callable, Sequence

import structlog

from p2pgrid.errors import PeerError, PeerMisbehaved, PeerUnavailable
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.transfer_messages import (
    BLOB_PIECE_BYTES_MAX,
    BLOB_PROTOCOL,
    BlobMessage,
    BlobMissing,
    BlobPiece,
    BlobRequest,
)

log = structlog.get_logger()

ANSWER_S_MAX = 10.0
BLOB_BYTES_MAX = 64 * 1024 * 1024
"""Largest blob that is fetched into memory."""


class BlobServer:
    """Gives out the blobs that `read(digest)` finds; None = we do not have it or do not give it away."""

    def __init__(self, transport: Transport, read: Callable[[str], bytes | None]) -> None:
        self._read = read
        transport.serve(BLOB_PROTOCOL, self._answer)

    async def _answer(self, stream: ByteStream) -> None:
        async def handle(request: BlobRequest) -> BlobPiece | BlobMissing:
            blob = self._read(request.digest)
            if blob is None:
                return BlobMissing()
            return BlobPiece(len(blob), blob[request.offset : request.offset + request.nbytes])

        await answer(stream, BlobRequest, handle, deadline_s=ANSWER_S_MAX)


async def fetch_blob(transport: Transport, contacts: Sequence[Contact], digest: str) -> bytes:
    """The blob whose SHA-256 is `digest`, from the first of `contacts` that gives it rightly.

    Raises PeerUnavailable when none does.
    """
    complaints: list[str] = []
    for contact in contacts:
        try:
            return await _fetch_from(transport, contact, digest)
        except PeerError as error:
            log.debug("no blob from peer", peer=contact.peer, digest=digest, error=str(error))
            complaints.append(f"{contact.peer}: {error}")
    tried = "; ".join(complaints) or "no peer to ask"
    raise PeerUnavailable(f"nobody gave blob {digest[:12]} ({tried})")


async def _fetch_from(transport: Transport, contact: Contact, digest: str) -> bytes:
    data = bytearray()
    total_bytes: int | None = None
    while total_bytes is None or len(data) < total_bytes:
        request = BlobRequest(digest, len(data), BLOB_PIECE_BYTES_MAX)
        piece: BlobMessage = await ask(
            transport, contact, BLOB_PROTOCOL, request, BlobPiece | BlobMissing, deadline_s=ANSWER_S_MAX
        )
        if not isinstance(piece, BlobPiece):
            raise PeerUnavailable("it does not have it", contact.peer)
        if total_bytes is None:
            total_bytes = piece.total_bytes
        # A whole piece or the rest, nothing less: a peer that gives it byte by byte would never be done.
        expected_bytes = min(BLOB_PIECE_BYTES_MAX, total_bytes - len(data))
        if piece.total_bytes != total_bytes or total_bytes > BLOB_BYTES_MAX or len(piece.data) != expected_bytes:
            raise PeerMisbehaved("a blob whose size makes no sense", contact.peer)
        data += piece.data
    if hashlib.sha256(data).hexdigest() != digest:
        raise PeerMisbehaved(f"a blob that is not {digest[:12]}", contact.peer)
    return bytes(data)
