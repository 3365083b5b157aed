"""Adverts for tests: of made-up peers, with bytes in place of a signature."""

from typing import Any, Literal

import msgspec

from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.wire.adverts import Advert, SignedAdvert
from p2pgrid.wire.codec import encode

MODEL = ModelId("ab" * 32)


def advert(
    peer: str,
    span: tuple[int, int] | Span | None = (0, 10),
    *,
    model: ModelId = MODEL,
    layers: int = 30,
    state: Literal["joining", "serving", "draining"] = "serving",
    sequence: int = 1,
    expires_at_s: float = 160.0,
    step_ms: float = 1.0,
    sessions_free: int = 1,
    **more: Any,
) -> Advert:
    """`more` are fields that a node need not say."""
    held = Span(*span) if isinstance(span, tuple) else span
    bare = Advert(
        PeerId(peer),
        (f"/memory/{peer}",),
        model,
        layers,
        state,
        held,
        layers,
        sequence,
        expires_at_s,
        step_ms,
        sessions_free,
    )
    return msgspec.structs.replace(bare, **more)


def signed(of: Advert) -> SignedAdvert:
    """The view passes signatures on and does not look at them."""
    return SignedAdvert(encode(of), bytes(32), bytes(64))
