"""What can go wrong in a simulation, and when."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kill:
    """The node's process is gone: its connections break, nobody can dial it."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Freeze:
    """The node goes on, but nothing reaches it and nothing leaves it: a pulled cable."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Thaw:
    """A frozen node is reached again, with all that it and others sent meanwhile."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Disconnect:
    """All connections of the node break; it lives on, and can be dialled again."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Cut:
    """For a while nothing passes between two nodes, whom all others still reach."""

    node: int
    other: int
    at_s: float
    healed_at_s: float


@dataclass(frozen=True)
class Leave:
    """The node is told to stop, and drains."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Partition:
    """For a while nothing passes between these nodes and all others; clients stay with the others."""

    nodes: tuple[int, ...]
    at_s: float
    healed_at_s: float


Fault = Kill | Freeze | Thaw | Disconnect | Cut | Leave | Partition
