"""What nodes say of themselves: `/p2pgrid/advert/1`. The rules are those of `wire.messages`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pgrid.ids import Span
from p2pgrid.wire.fields import Addresses, Count, Hex64, Layers, Message, Offset, Peer, Seconds, Text

ADVERT_PROTOCOL = "/p2pgrid/advert/1"

ADVERTS_PER_MESSAGE_MAX = 256
ADVERT_BYTES_MAX = 6 * 1024
DELAYS_MAX = 24
"""Neighbours whose distance an advert tells."""
LOST_MAX = 32
KNOWN_TAG_BYTES = 8
"""Of a signature, by which an asker says that it has the advert already."""

Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
PerSecond = Annotated[float, Meta(ge=0, le=1e9)]


class Advert(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself. Signed as bytes (`SignedAdvert`), so that it can be passed on."""

    peer: Peer
    addresses: Addresses
    model: Hex64
    layers: Layers
    """How many layers the whole model has."""
    state: Literal["joining", "serving", "draining"]
    span: Span | None
    """None while joining and not yet decided."""
    span_max: Layers
    """How many layers this node has memory for."""
    sequence: Offset
    """Of two adverts of one peer and model the higher one holds."""
    expires_at_s: Seconds
    """Unix time."""
    step_ms: Milliseconds = 0.0
    """Measured time of a one-token step through this span."""
    sessions_free: Count = 0
    model_name: Text = ""
    agent: Text = ""
    moving_to: Span | None = None
    """It is about to leave its span for this one."""
    since_s: Seconds = 0.0
    """Unix time since when it serves this span; 0 = not said."""
    queue_ms: Milliseconds = 0.0
    """What a step waits here before it is computed, lately."""
    positions_free: Count = 0
    """Token positions for which sessions can still reserve room; 0 while sessions are free = not said."""
    delays_ms: Annotated[dict[Peer, Milliseconds], Meta(max_length=DELAYS_MAX)] = {}
    """One way, to peers that it has links with."""
    tokens_per_s: PerSecond = 0.0
    """Decode steps that it computed lately."""
    tokens_per_s_max: PerSecond = 0.0
    """Decode steps that it computes when its batch is full; 0 = not measured."""
    canary_at_s: Seconds = 0.0
    """Unix time at which it last saw a token that had gone through a whole route; 0 = never."""
    sessions_open: Count = 0
    positions_max: Count = 0
    """Token positions for which there is room when no session is open; 0 = not said."""
    away: bool = False
    """It holds no layers because its owner needs the machine, and comes back by itself."""


class SignedAdvert(msgspec.Struct, frozen=True):
    advert: Annotated[bytes, Meta(max_length=ADVERT_BYTES_MAX)]
    """A MessagePack `Advert`."""
    public_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """Ed25519; the peer id in the advert must be this key's."""
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


SignedAdverts = Annotated[tuple[SignedAdvert, ...], Meta(max_length=ADVERTS_PER_MESSAGE_MAX)]


class Lost(msgspec.Struct, frozen=True):
    """A peer that did not answer, and the newest advert of it that was known then."""

    peer: Peer
    sequence: Offset


AllLost = Annotated[tuple[Lost, ...], Meta(max_length=LOST_MAX)]


class Exchange(Message, frozen=True):
    """Ask for adverts, and bring one's own. `model` empty = of every model."""

    model: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    mine: SignedAdverts = ()
    known: Annotated[bytes, Meta(max_length=KNOWN_TAG_BYTES * ADVERTS_PER_MESSAGE_MAX)] = b""
    """The first bytes of the signatures of adverts that the asker has: those need not be sent."""
    lost: AllLost = ()


class Adverts(Message, frozen=True):
    """The answer: the peer's own adverts first, then those it knows."""

    adverts: SignedAdverts
    lost: AllLost = ()


AdvertMessage = Exchange | Adverts
