"""All sessions of one client: opened, closed on every exit, and each incoming message handed to its own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.services.pipeline.session import Heard, PipelineSession, Terms
from p2pgrid.settings import PipelineSettings
from p2pgrid.wire.messages import Hop, Step

CLOSE_S_MAX = 0.5


class Pipeline:
    """Opens sessions through `links` and hands each incoming message to the session that it names."""

    def __init__(self, links: Links, settings: PipelineSettings, new_session_id: Callable[[], SessionId]) -> None:
        self._links = links
        self._settings = settings
        self._new_session_id = new_session_id
        self._sessions: dict[SessionId, PipelineSession] = {}

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    @asynccontextmanager
    async def open(
        self,
        model: ModelId,
        route: tuple[Hop, ...],
        terms: Terms = Terms(),  # noqa: B008 - frozen
    ) -> AsyncIterator[PipelineSession]:
        """A session on every stage of `route`; closed on every exit, wherever it was open.

        When `relayed`, every result comes here and is sent on from here, for stages that cannot reach each other.
        Raises PeerUnavailable, PeerMisbehaved or Overloaded, each naming the peer to avoid.
        """
        session = PipelineSession(self._links, self._new_session_id(), model, route, terms, self._settings)
        self._sessions[session.id] = session
        try:
            await session.open()
            yield session
        finally:
            del self._sessions[session.id]
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S_MAX):
                await session.holders.close()

    async def on_message(self, delivery: Delivery) -> None:
        """Called by the links. A message for a session that is over is passed over."""
        message = delivery.message
        if isinstance(message, Step):
            await self._relay(delivery.peer, message)
            delivery.release()
        elif not self.on_message_nowait(delivery):
            raise PeerMisbehaved(f"{type(message).__name__} is not for a client", delivery.peer)

    def on_message_nowait(self, delivery: Delivery) -> bool:
        """Take what a client is told; False for anything else."""
        message = delivery.message
        if not isinstance(message, Heard):
            return False
        session = self._sessions.get(message.session)
        if session is not None and session.epoch == message.epoch:
            session.take(delivery.peer, message)
        delivery.release()
        return True

    def relays(self, session: SessionId) -> bool:
        """Whether steps of `session` pass through here."""
        return session in self._sessions and self._sessions[session].relayed

    async def _relay(self, peer: PeerId, step: Step) -> None:
        session = self._sessions.get(step.session)
        if session is None or not session.relayed:
            return
        try:
            await session.relay(peer, step)
        except PeerUnavailable as error:
            session.fail(error)

    def on_lost(self, peer: PeerId, reason: str) -> None:
        for session in list(self._sessions.values()):
            for hop, stage in enumerate(session.route):
                if stage.peer == peer:
                    session.fail(PeerUnavailable(f"{session.name(hop)} was lost: {reason}", peer))
