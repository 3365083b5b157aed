"""When a node that serves leaves its layers for others: it looks now and then, says so, looks again, and goes."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from p2pgrid.core.rebalancing import Move, should_move
from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.ids import ModelId, Span
from p2pgrid.node.peer import Peer

log = structlog.get_logger()

LOOK_S = (8.0, 16.0)
"""A node looks after a random pause of this length whether the swarm would gain by its moving."""
GAP_LOOK_S = 0.5
"""Missing layers are noticed this soon after the view has lost their last holder."""
GAP_PAUSE_S_MAX = 1.0
"""The random pause before somebody says that it fills a gap, so that not all say so at once."""
CLAIM_S, GAP_CLAIM_S = 3.0, 1.0
"""How long a node waits, once it has said where it goes, for others who say the same."""
CLAIM_PEERS = 32
"""So many peers are told of it, and asked whether they have heard of another."""


class Mover:
    """Decides when a node moves. `publish` tells the peers that are known what `claim` has become."""

    def __init__(
        self, peer: Peer, model: ModelId, layers: int, span_max: int, publish: Callable[[], Awaitable[None]]
    ) -> None:
        self.claim: Span | None = None
        self._peer = peer
        self._model = model
        self._layers = layers
        self._span_max = span_max
        self._publish = publish
        self._gap_seen: tuple[int, bool] | None = None

    async def next_move(self, current: Span) -> Move:
        """Wait until it is time to leave `current`. From then on `claim` says where to, until the caller clears it."""
        rng = self._peer.rng
        self._gap_seen = None
        look_at = trio.current_time() + rng.uniform(*LOOK_S)
        while True:
            await trio.sleep(GAP_LOOK_S)
            move = None
            if self._sees_gap(current):
                await trio.sleep(rng.uniform(0, GAP_PAUSE_S_MAX))
                move = self._look(current)
            elif trio.current_time() >= look_at:
                look_at = trio.current_time() + rng.uniform(*LOOK_S)
                move = self._look(current)
            if move is not None and await self._settled(current, move):
                log.info("moving to other layers", layers=str(current), instead=str(move.span), gap=move.urgent)
                return move

    def _sees_gap(self, current: Span) -> bool:
        """Whether layers seem to be held by nobody. Asked often, so it looks only when something has changed."""
        view = self._peer.view
        if self._gap_seen is None or self._gap_seen[0] != view.changes:
            serving = [a.span for a in view.adverts(self._model, "serving") if a.span is not None]
            self._gap_seen = view.changes, bool(missing_layers([*serving, current], self._layers))
        return self._gap_seen[1]

    def _look(self, current: Span) -> Move | None:
        return should_move(
            self._peer.view.adverts(self._model),
            self._peer.transport.peer,
            current,
            self._span_max,
            self._layers,
            claimed=self.claim is not None,
        )

    async def _settled(self, current: Span, move: Move) -> bool:
        """Say where we go, and wait whether somebody with a better right says the same."""
        self.claim = move.span
        await self._publish()
        await trio.sleep(GAP_CLAIM_S if move.urgent else CLAIM_S)
        await self._peer.discovery.refresh(self._model, look_up=False, peers_max=CLAIM_PEERS)
        if self._look(current) == move:
            return True
        self.claim = None
        await self._publish()
        return False
