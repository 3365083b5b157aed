"""The messages by which nodes fetch blobs, hand sessions over and find direct connections, as frozen structs; see
`messages`.
"""

from typing import Annotated

from msgspec import Meta

from p2pgrid.wire.fields import Count, Digest, Message, Offset, Peer, Text
from p2pgrid.wire.messages import TOKENS_PER_STEP_MAX, Open

BLOB_PROTOCOL = "/p2pgrid/blob/1"
DIRECT_PROTOCOL = "/p2pgrid/direct/1"
KV_PROTOCOL = "/p2pgrid/kv/1"

BLOB_PIECE_BYTES_MAX = 1024 * 1024
KV_PIECE_BYTES_MAX = 1024 * 1024


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


class KvOffer(Message, frozen=True):
    """Ask a replica to take over a session, as `opening` says, whose route names it at `hop` already."""

    client: Peer
    opening: Open


class KvTaken(Message, frozen=True):
    """The answer to an offer: a row is kept, send it. And to the last piece: it is whole."""


class KvRefused(Message, frozen=True):
    """The answer to an offer: not here."""

    reason: Text


class KvRows(Message, frozen=True):
    """Keys and values of the positions from `position` on; what the row held there and behind is void."""

    position: Count
    tokens: Annotated[bytes, Meta(min_length=4, max_length=4 * TOKENS_PER_STEP_MAX)]
    """int32, little-endian, `[n]`."""
    kv: Annotated[bytes, Meta(max_length=KV_PIECE_BYTES_MAX)]
    """float32, little-endian, `[layers, 2, kv_heads, n, head_dim]`."""
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """SHA-256 of `kv`."""


class KvDone(Message, frozen=True):
    """The row ends at `length`, and no step has run since; the giver will tell the client."""

    length: Count


BlobMessage = BlobRequest | BlobPiece | BlobMissing
DirectMessage = DirectRequest | DirectOffer
KvMessage = KvOffer | KvTaken | KvRefused | KvRows | KvDone
