"""A token through a whole route now and then, so that a model is called ready only when it answers."""

import structlog
import trio

from p2pgrid.core.generation import Generation
from p2pgrid.core.health import canary_is_due
from p2pgrid.core.text import TextStream
from p2pgrid.errors import NoRoute, P2pgridError, PeerUnavailable
from p2pgrid.ids import ModelId
from p2pgrid.node.answer import Piece, generate
from p2pgrid.node.client import open_session
from p2pgrid.node.peer import Peer
from p2pgrid.services.pipeline import Terms

log = structlog.get_logger()

LOOK_S = (1.0, 3.0)
"""A node with layer 0 looks this often whether a token is due."""
ANSWER_S_MAX = 8.0
LOST_PAUSE_S = 5.0
TOKEN = 0
"""Any token is as good as another."""


async def send_canary(peer: Peer, model: ModelId, layers: int) -> None:
    """One token through the best route. Raises NoRoute, Overloaded, PeerUnavailable, PeerMisbehaved."""
    with trio.move_on_after(ANSWER_S_MAX):
        async with open_session(peer, model, layers, Terms(positions=2, exact=True)) as session:
            asked = Generation([TOKEN], max_tokens=1, stop_tokens=(), context_max=2, chunk=8, run_ahead=False)
            await generate(session, asked, text=TextStream(), bytes_of=_nothing, show=_ignore)
        return
    raise PeerUnavailable(f"no token came through the pipeline within {ANSWER_S_MAX:g} s")


class Canary:
    """Sends tokens through from a node that serves layer 0, when it is its turn and it has nothing better to do."""

    def __init__(self, peer: Peer, model: ModelId, layers: int) -> None:
        self.seen_at_s = 0.0
        """Unix time at which the last one came back."""
        self._peer = peer
        self._model = model
        self._layers = layers

    async def run(self) -> None:
        """Until cancelled. A token that gets lost is a reason to say nothing, and no more."""
        peer = self._peer
        while True:
            await trio.sleep(peer.rng.uniform(*LOOK_S))
            if not self._is_due():
                continue
            try:
                await send_canary(peer, self._model, self._layers)
            except P2pgridError as error:
                log.debug("no canary token came through", error=str(error))
                await trio.sleep(LOST_PAUSE_S)
                continue
            self.seen_at_s = peer.discovery.now_s()
            peer.discovery.renew()

    def _is_due(self) -> bool:
        """Whether it is our turn, we are not busy, and there is a route: to wait for one is not our business."""
        peer = self._peer
        adverts = peer.view.adverts(self._model)
        if peer.worker is None or peer.worker.sessions_open:
            return False
        if not canary_is_due(adverts, peer.transport.peer, peer.discovery.now_s(), self.seen_at_s):
            return False
        try:
            return bool(peer.find_route(self._model, self._layers))
        except NoRoute:
            return False


def _nothing(token: int) -> bytes:
    return b""


def _ignore(piece: Piece) -> None:
    pass
