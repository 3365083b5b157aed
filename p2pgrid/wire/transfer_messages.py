"""The messages by which nodes fetch blobs and find direct connections, as frozen structs; see `messages`."""

from typing import Annotated

from msgspec import Meta

from p2pgrid.wire.fields import Digest, Message, Offset

BLOB_PROTOCOL = "/p2pgrid/blob/1"
DIRECT_PROTOCOL = "/p2pgrid/direct/1"

BLOB_PIECE_BYTES_MAX = 1024 * 1024


class BlobRequest(Message, frozen=True):
    """Ask for bytes `[offset, offset + nbytes)` of the blob whose SHA-256 is `digest`."""

    digest: Digest
    offset: Offset
    nbytes: Annotated[int, Meta(ge=1, le=BLOB_PIECE_BYTES_MAX)]


class BlobPiece(Message, frozen=True):
    """`total_bytes` of the whole blob, and the bytes asked for (fewer at its end)."""

    total_bytes: Offset
    data: Annotated[bytes, Meta(max_length=BLOB_PIECE_BYTES_MAX)]


class BlobMissing(Message, frozen=True):
    """The peer does not hold this blob, or does not give it away."""


class DirectRequest(Message, frozen=True):
    """Ask for a TCP port that takes a stream of `protocol` from us."""

    protocol: Annotated[str, Meta(min_length=1, max_length=128)]


class DirectOffer(Message, frozen=True):
    """Dial `port` and say `token`, which is good for the asker alone, once. Port 0 = no."""

    port: Annotated[int, Meta(ge=0, le=65_535)]
    token: Annotated[bytes, Meta(max_length=32)] = b""


BlobMessage = BlobRequest | BlobPiece | BlobMissing
DirectMessage = DirectRequest | DirectOffer
