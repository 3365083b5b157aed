"""Who may hold a row of a session: each of them must hear its end."""

from collections.abc import Collection

import structlog
import trio

from p2pgrid.errors import PeerUnavailable
from p2pgrid.ids import PeerId, SessionId
from p2pgrid.net.links import Links
from p2pgrid.wire.messages import ROUTE_HOPS_MAX, Close, Contact, Hop

log = structlog.get_logger()


class Holders:
    """Stages that were asked to open `session`, and heirs: replicas to which one that left gave its row."""

    def __init__(self, links: Links, session: SessionId) -> None:
        self._links = links
        self._session = session
        self._peers: dict[PeerId, Contact | None] = {}
        """With a contact: an heir, which has never heard of us. Others forget the session with the link to us."""

    @property
    def peers(self) -> Collection[PeerId]:
        """In the order in which they came to be some."""
        return self._peers.keys()

    def asked(self, peer: PeerId) -> None:
        """To open the session, over a link."""
        self._peers[peer] = None

    def inherited(self, to: Hop) -> None:
        """A stage says that it gave its row to this one."""
        heirs = sum(contact is not None for contact in self._peers.values())
        if to.peer not in self._peers and heirs < ROUTE_HOPS_MAX:
            self._peers[to.peer] = Contact(to.peer, to.addresses)

    def leave_all_but(self, route: Collection[PeerId]) -> None:
        """Those who are no longer part of the route forget the session; where that cannot be said now, at the end."""
        for peer in [peer for peer in self._peers if peer not in route]:
            try:
                if not self._links.try_send(peer, Close(self._session)):
                    continue
            except PeerUnavailable:
                if self._peers[peer] is not None:
                    continue
            del self._peers[peer]

    async def close(self) -> None:
        """Tell all; whoever waits for it says for how long."""
        async with trio.open_nursery() as tasks:  # at once, because a stuck stage takes all the time there is
            for peer, contact in self._peers.items():
                if contact is not None or self._links.is_up(peer):
                    tasks.start_soon(self._close_one, peer, contact)

    async def _close_one(self, peer: PeerId, contact: Contact | None) -> None:
        try:
            if contact is not None:
                await self._links.connect(contact)
            await self._links.send(peer, Close(self._session))
        except PeerUnavailable as error:
            log.debug("stage is gone", peer=peer, error=str(error))
