"""What the parts of a gateway have in common, and its life."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from p2pgrid.gateway.access import Access
from p2pgrid.gateway.activity import Activity
from p2pgrid.gateway.limits import GatewayLimits
from p2pgrid.gateway.metrics import Metrics
from p2pgrid.gateway.models import Models
from p2pgrid.node.peer import Peer


def _random_id() -> str:
    return secrets.token_hex(12)


@dataclass
class Gateway:
    """One door to the swarm that `peer` belongs to. Handed to every route."""

    peer: Peer
    models: Models
    access: Access
    cors: Sequence[str] = ()
    """Origins whose pages may call this gateway from a browser."""
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    activity: Activity = field(default_factory=Activity)
    stopping: trio.Event = field(default_factory=trio.Event)
    """Set when the gateway ends: what runs says so to its client and is over."""
    bootstrap: tuple[str, ...] = ()
    """Addresses by which further nodes join the same swarm, for the page to tell."""
    new_id: Callable[[], str] = _random_id
    """Names a request."""
    metrics: Metrics = field(init=False)
    _replies: int = 0
    _replied: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.peer, self.models, self.activity)

    def now_s(self) -> float:
        """Unix time."""
        return self.peer.discovery.now_s()

    @contextmanager
    def replying(self) -> Iterator[None]:
        """While this holds a client waits for the rest of its reply."""
        self._replies += 1
        try:
            yield
        finally:
            self._replies -= 1
            self._replied.unpark_all()

    async def stop(self) -> None:
        """Have all replies ended, and wait until they are or patience is over. Not cut short by anybody else."""
        self.stopping.set()
        with trio.move_on_after(self.limits.stop_s_max, shield=True):
            while self._replies:
                await self._replied.park()
