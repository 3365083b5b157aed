"""The names by which things are called: peers, models, sessions, spans of layers."""

from typing import NewType

import msgspec

PeerId = NewType("PeerId", str)
"""A libp2p peer id of an Ed25519 key, base58: `12D3KooW…`."""

ModelId = NewType("ModelId", str)
"""SHA-256 of a model's manifest, 64 hex digits."""

SessionId = NewType("SessionId", str)
"""One generation, chosen at random by its client, 32 hex digits."""

LAYERS_MAX = 1024


class Span(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Layers `[start, stop)` of a model. Never empty. On the wire and in JSON: `[start, stop]`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= LAYERS_MAX:
            raise ValueError(f"no span of layers: {self.start}:{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.stop
