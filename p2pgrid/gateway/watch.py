"""Looking at a swarm closely: links to its nodes, which notice losses at once, and frequent questions for news."""

from collections.abc import Callable, Collection

import structlog
import trio

from p2pgrid.errors import PeerError
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.node.peer import Peer
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Contact

log = structlog.get_logger()

WATCHED_MAX = 64
"""Nodes with whom a link is held. The loss of others is learned from hearsay, some seconds later."""
ASK_CALM_S = 2.0
ASK_EAGER_S = 0.4
"""How often nodes are asked for news while somebody comes, moves or was just lost."""
EAGER_S = 15.0
"""For so long after a change more of it is expected."""
DIAL_AGAIN_S = 10.0


class Watch:
    """Keeps a close eye on the nodes of `models()` while it runs. Links that it made stay: requests use them too."""

    def __init__(self, peer: Peer, models: Callable[[], Collection[ModelId]]) -> None:
        self._peer = peer
        self._models = models
        self._not_before_s: dict[PeerId, float] = {}
        self._changes = -1
        self._eager_until_s = 0.0

    async def run(self) -> None:
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._ask)
            while True:
                self._dial(tasks)
                await trio.sleep(ASK_EAGER_S)

    async def _ask(self) -> None:
        while True:
            async with trio.open_nursery() as tasks:
                for model in sorted(self._models()):
                    tasks.start_soon(self._peer.discovery.refresh, model)
            await trio.sleep(ASK_EAGER_S if self._expects_news() else ASK_CALM_S)

    def _expects_news(self) -> bool:
        now = trio.current_time()
        if self._changes != self._peer.view.changes:
            self._changes = self._peer.view.changes
            self._eager_until_s = now + EAGER_S
        return now < self._eager_until_s

    def _dial(self, tasks: trio.Nursery) -> None:
        """A link to each node that has none, as far as there is room."""
        now = trio.current_time()
        self._not_before_s = {peer: at for peer, at in self._not_before_s.items() if at > now}
        nodes = {advert.peer: advert for model in sorted(self._models()) for advert in self._peer.view.adverts(model)}
        linked = [peer for peer in nodes if self._peer.links.is_up(peer)]
        room = WATCHED_MAX - len(linked) - len(self._not_before_s)
        waiting = [a for a in nodes.values() if a.peer not in linked and a.peer not in self._not_before_s]
        for advert in waiting[: max(room, 0)]:
            self._not_before_s[advert.peer] = now + DIAL_AGAIN_S
            tasks.start_soon(self._connect, advert)

    async def _connect(self, advert: Advert) -> None:
        try:
            await self._peer.links.connect(Contact(advert.peer, advert.addresses))
        except PeerError as error:
            log.debug("no link to a node on the map", peer=advert.peer, error=str(error))
        else:
            self._not_before_s.pop(advert.peer, None)
