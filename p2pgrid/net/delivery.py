"""What links hand to services."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2pgrid.ids import PeerId
from p2pgrid.wire.messages import SessionMessage


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message of `peer`. Call `release` once it is consumed; only then the peer may send as much again."""

    peer: PeerId
    message: SessionMessage
    release: Callable[[], None]


OnMessage = Callable[[Delivery], Awaitable[None]]
OnMessageNowait = Callable[[Delivery], bool]
"""Takes a message at once, or returns False and has forgotten it: then `OnMessage` gets it."""


def once(give_back: Callable[[int], None], cost: int) -> Callable[[], None]:
    """`give_back(cost)` at the first call, nothing at later ones."""
    released = False

    def release() -> None:
        nonlocal released
        if not released:
            released = True
            give_back(cost)

    return release
