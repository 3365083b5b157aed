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


@dataclass(frozen=True)
class Stall:
    """No step that the node begins ever ends; it otherwise lives, answers pings and goes on advertising itself."""

    node: int
    at_s: float


@dataclass(frozen=True)
class Slow:
    """For a while a step takes the node so many times as long."""

    node: int
    factor: float
    at_s: float
    until_s: float


@dataclass(frozen=True)
class Delay:
    """For a while all that the node sends and gets takes so much longer, one way."""

    node: int
    extra_s: float
    at_s: float
    until_s: float


@dataclass(frozen=True)
class Duplicate:
    """For a while every message of a session but Open and Scores comes twice, everywhere, the second right behind the
    first.

    Links neither lose nor repeat what they carry: it is peers who may say a thing again. So messages are doubled where
    links hand them over, behind the accounts of their windows. The two are not to be said again: an Open is answered
    with Failed then, and a client takes whoever scores twice for a liar.
    """

    at_s: float
    until_s: float


Fault = Kill | Freeze | Thaw | Disconnect | Cut | Leave | Partition | Stall | Slow | Delay | Duplicate


def struck_by(fault: Fault) -> tuple[int, ...]:
    """The nodes on which no answer can count any more; for a Cut, one of its two sides."""
    match fault:
        case Partition(nodes=nodes):
            return nodes
        case Duplicate():
            return ()
        case _:
            return (fault.node,)
