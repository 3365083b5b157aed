"""The client side of the pipeline: opens a session on every stage of a route, sends steps, receives answers."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.core.prefix import block_keys, join_keys
from p2pgrid.errors import Overloaded, PeerError, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.settings import PipelineSettings
from p2pgrid.wire.messages import (
    Busy,
    Close,
    Contact,
    Failed,
    Hop,
    Open,
    Opened,
    OutOfSync,
    Sampling,
    Scores,
    Step,
    Token,
    WireChoice,
)
from p2pgrid.wire.tensors import pack_ints

log = structlog.get_logger()

Answer = Token | Scores
CLOSE_S_MAX = 0.5


@dataclass(frozen=True)
class Terms:
    """What a client asks of every stage of a session; see the fields of `Open`."""

    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: tuple[int, ...] = ()
    prompt: Sequence[int] = ()
    """What stages still hold of it need not be computed again; empty = compute everything."""
    positions: int = 0
    cache_scope: str = ""
    wire: WireChoice = "fp32"
    exact: bool = False
    relayed: bool = False


class PipelineSession:
    """A session that is open on every stage of `route`. Made by `Pipeline.open`, ended by its context."""

    def __init__(
        self, links: Links, session: SessionId, route: tuple[Hop, ...], token_s_max: float, *, relayed: bool
    ) -> None:
        self.id = session
        self.route = route
        self.relayed = relayed
        self.epoch = 0
        self._links = links
        self._token_s_max = token_s_max
        self._opened: dict[int, int] = {}
        self._all_opened = trio.Event()
        self._failure: PeerError | None = None
        # Bounded by what was asked for: one answer a step or granted position.
        self._push, self._answers = trio.open_memory_channel[Answer](float("inf"))

    @property
    def cached(self) -> int:
        """Positions of the prompt that every stage holds already."""
        return min(self._opened.values(), default=0)

    async def send(self, step: SendStep) -> None:
        """To stage 0. Raises what ended the session: PeerUnavailable, PeerMisbehaved."""
        self._check()
        message = Step(
            self.id,
            self.epoch,
            step.position,
            pack_ints(step.tokens),
            want=step.want,
            targets=pack_ints(step.targets),
            until=step.until,
        )
        await self._send_to(0, message)

    async def relay(self, peer: PeerId, step: Step) -> None:
        """Hidden states of the stage on `peer`, on their way to the next one. Raises what ended the session."""
        for hop, stage in enumerate(self.route[:-1]):
            if stage.peer == peer:
                await self._send_to(hop + 1, step)

    async def _send_to(self, hop: int, step: Step) -> None:
        try:
            await self._links.send(self.route[hop].peer, step)
        except PeerUnavailable as error:
            self._check()
            raise PeerUnavailable(f"{self.name(hop)} cannot be reached: {error}", self.route[hop].peer) from error

    async def receive(self) -> Answer:
        """The next answer of the last stage. Raises what ended the session, or PeerUnavailable after a long silence."""
        with trio.move_on_after(self._token_s_max):
            try:
                return await self._answers.receive()
            except trio.EndOfChannel:
                self._check()
        raise PeerUnavailable(f"the pipeline gave no token for {self._token_s_max:.0f} s", self.route[-1].peer)

    def fail(self, error: PeerError) -> None:
        if self._failure is None:
            self._failure = error
            self._push.close()
            self._all_opened.set()

    async def wait_opened(self) -> None:
        await self._all_opened.wait()
        self._check()

    def take(self, peer: PeerId, message: Opened | Token | Scores | OutOfSync | Busy | Failed) -> None:
        """A message for this session. What comes from a peer that may not say it is passed over."""
        match message:
            case Token() | Scores():
                if peer == self.route[-1].peer and self._failure is None:
                    self._push.send_nowait(message)
                return
            case _:
                if not (message.hop < len(self.route) and self.route[message.hop].peer == peer):
                    return
        where = self.name(message.hop)
        match message:
            case Opened(cached=cached):
                self._opened[message.hop] = cached
                if len(self._opened) == len(self.route):
                    self._all_opened.set()
            case OutOfSync(length=length):
                self.fail(PeerMisbehaved(f"{where} is out of step: it holds {length} positions", peer))
            case Busy(retry_after_s=after):
                self.fail(Overloaded(f"{where} has no room now; try again in {after:.1f} s", after, peer))
            case Failed(reason=reason):
                self.fail(PeerUnavailable(f"{where} ended the answer: {reason}", peer))

    def not_open(self) -> int:
        """The first hop that has not said `Opened`, or 0 when the last one said it just now."""
        return min(set(range(len(self.route))) - self._opened.keys(), default=0)

    def name(self, hop: int) -> str:
        stage = self.route[hop]
        return f"stage {hop} (layers {stage.span} on {stage.peer})"

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class Pipeline:
    """Opens sessions through `links` and hands each incoming message to the session that it names."""

    def __init__(self, links: Links, settings: PipelineSettings, new_session_id: Callable[[], SessionId]) -> None:
        self._links = links
        self._settings = settings
        self._new_session_id = new_session_id
        self._sessions: dict[SessionId, PipelineSession] = {}

    @asynccontextmanager
    async def open(
        self, model: ModelId, route: tuple[Hop, ...], terms: Terms = Terms()
    ) -> AsyncIterator[PipelineSession]:
        """A session on every stage of `route`; closed there on every exit.

        When `relayed`, every result comes here and is sent on from here, for stages that cannot reach each other.
        Raises PeerUnavailable, PeerMisbehaved or Overloaded, each naming the peer to avoid.
        """
        session_id = self._new_session_id()
        session = PipelineSession(self._links, session_id, route, self._settings.token_s_max, relayed=terms.relayed)
        self._sessions[session.id] = session
        try:
            with trio.move_on_after(self._settings.open_s_max) as deadline:
                await self._open_all(session, model, terms)
            if deadline.cancelled_caught:
                late = session.not_open()
                raise PeerUnavailable(
                    f"{session.name(late)} was not open within {self._settings.open_s_max:.0f} s", route[late].peer
                )
            yield session
        finally:
            del self._sessions[session.id]
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S_MAX):
                await self._close_all(session)

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
        if not isinstance(message, Opened | Token | Scores | OutOfSync | Busy | Failed):
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

    async def _open_all(self, session: PipelineSession, model: ModelId, terms: Terms) -> None:
        prefix = join_keys(block_keys(terms.prompt[:-1]))  # the last token always runs

        async def open_one(hop: int, stage: Hop) -> None:
            try:
                await self._links.connect(Contact(stage.peer, stage.addresses))
                opening = Open(
                    session.id,
                    session.epoch,
                    model,
                    session.route,
                    hop,
                    terms.sampling,
                    terms.stop_tokens,
                    terms.relayed,
                    terms.positions,
                    prefix,
                    terms.cache_scope,
                    terms.wire,
                    terms.exact,
                )
                await self._links.send(stage.peer, opening)
            except PeerUnavailable as error:
                session.fail(PeerUnavailable(f"{session.name(hop)} cannot be reached: {error}", stage.peer))

        async with trio.open_nursery() as tasks:
            for hop, stage in enumerate(session.route):
                tasks.start_soon(open_one, hop, stage)
        await session.wait_opened()

    async def _close_all(self, session: PipelineSession) -> None:
        async def close_one(stage: Hop) -> None:
            try:
                await self._links.send(stage.peer, Close(session.id))
            except PeerUnavailable as error:  # its stage forgets the session with the link
                log.debug("stage is gone", peer=stage.peer, error=str(error))

        async with trio.open_nursery() as tasks:  # at once, because a stuck stage takes all the time there is
            for stage in session.route:
                if self._links.is_up(stage.peer):
                    tasks.start_soon(close_one, stage)
