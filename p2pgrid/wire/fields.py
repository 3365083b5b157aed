"""What the fields of messages may hold, and what all messages have in common."""

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pgrid.ids import ModelId, PeerId, SessionId

ADDRESSES_MAX = 16

Hex32 = Annotated[SessionId, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex64 = Annotated[ModelId, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Peer = Annotated[PeerId, Meta(pattern=r"^[1-9A-HJ-NP-Za-km-z]{40,64}\Z")]
Address = Annotated[str, Meta(min_length=1, max_length=256)]
Addresses = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Text = Annotated[str, Meta(max_length=500)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """Base of what travels: tagged by its class name in lower case; fields at their default stay at home."""
