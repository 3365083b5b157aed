"""Nodes with links, for tests: what arrived, what was lost, and how to take a node down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from p2pgrid.ids import PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.net.transport import Transport
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.messages import Contact, SessionMessage, Step, Token
from p2pgrid.wire.signing import Identity

SESSION = SessionId("5e" * 16)


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


def token(position: int) -> Token:
    return Token(SESSION, 0, position, 7)


def step(nbytes: int, position: int = 0) -> Step:
    return Step(SESSION, 0, position, b"\0\0\0\0", bytes(nbytes))


@dataclass
class Node:
    transport: Transport
    links: Links
    arrived: list[tuple[PeerId, SessionMessage]] = field(default_factory=list)
    held: list[Delivery] = field(default_factory=list)
    """Deliveries that were not released, where the node holds them."""
    lost: list[tuple[PeerId, str]] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)

    @property
    def peer(self) -> PeerId:
        return self.transport.peer

    @property
    def contact(self) -> Contact:
        return Contact(self.peer, self.transport.addresses)

    def positions(self, peer: PeerId) -> list[int]:
        """Positions of the tokens that came from `peer`, in order of arrival."""
        return [m.position for sender, m in self.arrived if sender == peer and isinstance(m, Token)]

    async def arrival(self, count: int) -> None:
        """Wait until so many messages have arrived."""
        while len(self.arrived) < count:
            await self.news.wait()

    async def loss(self, count: int = 1) -> None:
        """Wait until so many links were lost."""
        while len(self.lost) < count:
            await self.news.wait()

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()


@asynccontextmanager
async def linked(
    transport: Transport, settings: LinkSettings | None = None, *, hold: bool = False
) -> AsyncIterator[Node]:
    """A node with running links on `transport`; with `hold` it never releases what is delivered."""

    async def on_message(delivery: Delivery) -> None:
        node.arrived.append((delivery.peer, delivery.message))
        if hold:
            node.held.append(delivery)
        else:
            delivery.release()
        node.tell()

    def on_lost(peer: PeerId, reason: str) -> None:
        node.lost.append((peer, reason))
        node.tell()

    links = Links(transport, settings or LinkSettings(), on_message=on_message, on_lost=on_lost)
    node = Node(transport, links)
    async with trio.open_nursery() as tasks:
        await tasks.start(links.run)
        yield node
        tasks.cancel_scope.cancel()
