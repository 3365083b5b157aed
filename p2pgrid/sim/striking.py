"""How faults are brought about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import trio

from p2pgrid.ids import PeerId
from p2pgrid.net.delivery import Delivery
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.node import Node
from p2pgrid.node.peer import Peer
from p2pgrid.sim.faults import (
    Cut,
    Delay,
    Disconnect,
    Duplicate,
    Fault,
    Freeze,
    Kill,
    Leave,
    Partition,
    Slow,
    Stall,
    Thaw,
)
from p2pgrid.wire.messages import Open, Scores
from p2pgrid.wire.signing import Identity

NEVER_S = 1e9
"""A step that takes so long ends when the simulation does: time leaps then."""


@dataclass
class Member:
    """One node of a simulated swarm, and its handles."""

    identity: Identity
    step_s: float
    """What its steps take just now."""
    node: Node | None = None
    """Once it has begun."""
    peer: Peer | None = None
    """As long as it lives."""
    out_of_reach: bool = False
    """Frozen or stalled: it cannot give back what it holds, which is no leak."""
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Strikes:
    """Brings faults about in `network`, to `members`; `clients` are the others in it."""

    def __init__(self, network: MemoryNetwork, members: Sequence[Member], clients: frozenset[PeerId]) -> None:
        self._network = network
        self._members = members
        self._everybody = clients | {member.identity.peer for member in members}
        self._doubling = 0

    def hear_twice(self, peer: Peer) -> None:
        """Have a Duplicate reach what comes to `peer`."""
        on_message, on_message_nowait = peer.on_message, peer.on_message_nowait

        async def twice(delivery: Delivery) -> None:
            await on_message(delivery)
            if self._doubles(delivery):
                await on_message(_again(delivery))

        def twice_nowait(delivery: Delivery) -> bool:
            taken = on_message_nowait(delivery)
            if taken and self._doubles(delivery):
                on_message_nowait(_again(delivery))
            return taken

        peer.on_message, peer.on_message_nowait = twice, twice_nowait  # type: ignore[method-assign]

    def _doubles(self, delivery: Delivery) -> bool:
        return self._doubling > 0 and not isinstance(delivery.message, Open | Scores)

    async def bring_about(self, fault: Fault, note: Callable[[str], None]) -> None:
        """At its time, and undo it at its time; `note` hears of both."""
        await trio.sleep_until(fault.at_s)
        note(f"{fault}")
        match fault:
            case Kill() | Freeze() | Thaw() | Disconnect() | Leave() | Stall():
                self._strike(fault, self._members[fault.node])
                return
            case Cut(healed_at_s=until_s):
                cut = self._network.partition({self._peer(fault.node)}, {self._peer(fault.other)})
                await trio.sleep_until(until_s)
                self._network.heal(cut)
            case Partition(healed_at_s=until_s):
                cut_off = {self._peer(node) for node in fault.nodes}
                cut = self._network.partition(cut_off, self._everybody - cut_off)
                await trio.sleep_until(until_s)
                self._network.heal(cut)
            case Slow(until_s=until_s):
                member = self._members[fault.node]
                member.step_s *= fault.factor
                await trio.sleep_until(until_s)
                member.step_s /= fault.factor
            case Delay(until_s=until_s):
                self._network.delay(self._peer(fault.node), fault.extra_s)
                await trio.sleep_until(until_s)
                self._network.delay(self._peer(fault.node), 0.0)
            case Duplicate(until_s=until_s):
                self._doubling += 1
                await trio.sleep_until(until_s)
                self._doubling -= 1
            case _:
                assert_never(fault)
        note(f"over: {fault}")

    def _strike(self, fault: Kill | Freeze | Thaw | Disconnect | Leave | Stall, member: Member) -> None:
        network, peer = self._network, member.identity.peer
        match fault:
            case Kill():
                network.kill(peer)
                member.peer = None
                member.scope.cancel()
            case Freeze() | Thaw():
                member.out_of_reach = isinstance(fault, Freeze)
                network.freeze(peer, member.out_of_reach)
            case Disconnect():
                network.disconnect(peer)
            case Leave():
                member.stop.set()
            case Stall():
                member.out_of_reach = True
                member.step_s = NEVER_S
            case _:
                assert_never(fault)

    def _peer(self, node: int) -> PeerId:
        return self._members[node].identity.peer


def _again(delivery: Delivery) -> Delivery:
    return Delivery(delivery.peer, delivery.message, _nothing)


def _nothing() -> None:
    """The first of the two gives the credit back."""
