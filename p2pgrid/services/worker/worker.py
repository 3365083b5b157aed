"""The stage side of the pipeline: the lives of the sessions that clients open here."""

from collections.abc import Callable, Sequence

import structlog
import trio

from p2pgrid.core.load import Load
from p2pgrid.core.stage_session import StageSession, check_route
from p2pgrid.engine.json_schema import JsonGrammars
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault, Overloaded, PeerError, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.net.transport import Transport
from p2pgrid.services.worker.handover import Taker, give
from p2pgrid.services.worker.loop import StageLoop
from p2pgrid.services.worker.room import Room
from p2pgrid.services.worker.seat import Seat
from p2pgrid.services.worker.session import Here, Session
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.messages import (
    Busy,
    Close,
    Failed,
    Hop,
    Moved,
    Open,
    Replay,
    SessionMessage,
    Step,
)
from p2pgrid.wire.transfer_messages import KV_PROTOCOL

log = structlog.get_logger()

FAREWELL_S_MAX = 0.5
ENDING_S = 0.1
"""After which a session that ends is over, about."""
REPLICAS_MAX = 3
"""So many are asked to take over a session, and again after a pause."""
ASK_AGAIN_S = 0.25
HANDOVERS_AT_ONCE = 2
"""The others run on. All at once, each would wait at its end, when no step runs, for the copies of the others."""

Replicas = Callable[[int], Sequence[Hop]]
"""Nodes with the same span that have room for a session of so many positions, the best one first."""


class Worker:
    """Serves the sessions that clients open on this node's stage."""

    def __init__(
        self,
        model: ModelId,
        stage: Stage,
        executor: Executor,
        links: Links,
        transport: Transport,
        tracer: Tracer = NO_TRACE,
        grammars: JsonGrammars | None = None,
    ) -> None:
        self._model = model
        self._stage = stage
        self._executor = executor
        self._links = links
        self._transport = transport
        self.room = Room(stage, executor, lambda: self._tasks is None or self._draining)
        self._loop = StageLoop(stage, executor, links, self._fail, self._lose, tracer)
        self._here = Here(transport.peer, stage, executor, links, self._loop, self.room.prefixes, grammars)
        self._sessions: dict[SessionId, Session] = {}
        self._tasks: trio.Nursery | None = None
        self._draining = False
        self._patience = trio.CancelScope()
        self._idle = trio.Event()

    @property
    def load(self) -> Load:
        return self._loop.load

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._executor.standing(self._model, self._stage):
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._loop.run)
                self._transport.serve(KV_PROTOCOL, Taker(self._here, self._take_over, self._drop).answer)
                task_status.started()

    async def drain(self, deadline_s: float, replicas: Replicas = lambda positions: ()) -> None:
        """Take no new session, and hand those that run over to `replicas`. Those that nobody takes may go on here; what
        is left after `deadline_s` is ended, and its client told.
        """
        self._draining = True
        self._patience.deadline = trio.current_time() + deadline_s
        with self._patience:
            lanes = trio.CapacityLimiter(HANDOVERS_AT_ONCE)
            async with trio.open_nursery() as givers:
                for session in self._sessions.values():
                    if not session.seat.machine.opening.relayed:  # those have one route
                        givers.start_soon(self._hand_over, session, replicas, lanes)
                await self._wait_idle()
                givers.cancel_scope.cancel()
        for session in list(self._sessions.values()):
            self._end(session, "the node is leaving")
        with trio.move_on_after(FAREWELL_S_MAX):
            await self._wait_idle()
        self.room.prefixes.forget()

    def hurry(self, deadline_s: float) -> None:
        """Drain for no longer than this from now on."""
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + deadline_s)

    async def _hand_over(self, session: Session, replicas: Replicas, lanes: trio.CapacityLimiter) -> None:
        """Offer a session to replicas, again and again; whoever waits for it to be over cancels this."""
        while True:
            async with lanes:
                for to in replicas(session.seat.machine.context_max)[:REPLICAS_MAX]:
                    if not session.seat.ended:
                        await self._offer(session, to)
            await trio.sleep(ASK_AGAIN_S)

    async def _offer(self, session: Session, to: Hop) -> None:
        machine = session.seat.machine

        async def tell() -> None:
            await session.say(Moved(machine.id, machine.epoch, machine.hop, to))

        try:
            left_s = self._patience.deadline - trio.current_time()
            await give(self._here, self._transport, session, to, tell, left_s)
        except PeerError as error:
            log.debug("a session was not handed over", to=to.peer, error=str(error))
            if session.waits:
                self._end(session, "the node is leaving")  # its client finds another route sooner than we
        else:
            self._end(session, None)

    async def _wait_idle(self) -> None:
        while self._sessions:
            await self._idle.wait()

    async def on_message(self, delivery: Delivery) -> None:
        """Called by the links, in order for each peer. Raises PeerMisbehaved for what cuts the peer off."""
        message = delivery.message
        if isinstance(message, Open):
            await self._open(delivery.peer, message)
            delivery.release()
        elif not self.on_message_nowait(delivery):
            raise PeerMisbehaved(f"{type(message).__name__} is not for a stage", delivery.peer)
        else:
            self.run_now()

    def run_now(self) -> None:
        """Run the steps that were taken, or begin to."""
        self._loop.run_now()

    def on_message_nowait(self, delivery: Delivery) -> bool:
        """Take a step, a replay or the end of a session; False for anything else. Steps wait until `run_now`."""
        match delivery.message:
            case Step() as step:
                session = self._sessions.get(step.session)
                if session is not None:
                    self._take(session, delivery, step)
                    return True
            case Replay() as asked:
                session = self._sessions.get(asked.session)
                if session is not None and session.seat.machine.client == delivery.peer:
                    session.replay(asked)
            case Close(session=session_id):
                session = self._sessions.get(session_id)
                if session is not None and session.seat.machine.client == delivery.peer:
                    self._end(session, None)
            case _:
                return False
        delivery.release()
        return True

    def on_lost(self, peer: PeerId, reason: str) -> None:
        """A link is gone: a client's sessions end; sessions that send to a lost stage wait for another route."""
        for session in list(self._sessions.values()):
            if session.seat.machine.client == peer:
                self._end(session, None)
            else:
                session.lost_link(peer, reason)

    # ── a session's beginning ────────────────────────────────────────────────────────────────────────────

    async def _open(self, client: PeerId, opening: Open) -> None:
        known = self._sessions.get(opening.session)
        if known is not None:
            await self._reopen(known, client, opening)
            return
        try:
            self._begin(self._admit(client, opening))
        except PeerMisbehaved as error:
            await self._say(client, Failed(opening.session, opening.epoch, opening.hop, str(error)))
        except Overloaded as error:
            await self._say(client, Busy(opening.session, opening.epoch, opening.hop, error.retry_after_s))

    def _take_over(self, client: PeerId, opening: Open) -> Session:
        """A session that another stage hands over. Raises as `_admit`."""
        if opening.session in self._sessions:
            raise PeerMisbehaved("a session of this id is open already")
        session = self._admit(client, opening)
        session.park()
        self._begin(session)
        return session

    def _drop(self, session: Session) -> None:
        self._end(session, None)

    def _admit(self, client: PeerId, opening: Open) -> Session:
        """Take room for a session. Raises PeerMisbehaved for one that cannot be here, Overloaded without room."""
        machine = StageSession(client, opening, self._stage.context_max)
        if opening.model != self._model:
            raise PeerMisbehaved(f"this node serves model {self._model[:12]}, not {opening.model[:12]}")
        check_route(opening, self._transport.peer, self._stage.span, self._stage.layers)
        return Session(self._here, self.room.take(machine))

    def _begin(self, session: Session) -> None:
        assert self._tasks is not None
        self._sessions[session.seat.machine.id] = session
        self._tasks.start_soon(self._serve, session)

    async def _reopen(self, session: Session, client: PeerId, opening: Open) -> None:
        """Another route of a session that is here: it goes on with the row that it has."""
        answer: SessionMessage
        if client != session.seat.machine.client or opening.epoch <= session.latest.epoch:
            answer = Failed(opening.session, opening.epoch, opening.hop, "a session of this id is open already")
        elif session.seat.ended:
            answer = Busy(opening.session, opening.epoch, opening.hop, ENDING_S)
        else:
            session.reopen(opening)
            return
        await self._say(client, answer)

    def _take(self, session: Session, delivery: Delivery, step: Step) -> None:
        seat = session.seat
        if seat.deaf or not seat.entered or step.epoch != seat.machine.epoch:  # before `Opened` no step is due
            delivery.release()
        elif not seat.machine.may_send(delivery.peer):
            log.warning("step from a peer that is not in the session's route", peer=delivery.peer)
            delivery.release()
        elif not seat.machine.takes(step) or session.stops_before(step):
            delivery.release()
        else:
            try:
                self._loop.put(seat, delivery, step)
            except PeerMisbehaved as error:
                delivery.release()
                self._fail(seat, str(error))

    # ── its life and its end ─────────────────────────────────────────────────────────────────────────────

    async def _serve(self, session: Session) -> None:
        """The life of one session. Gives its row back, whatever happens."""
        try:
            await session.live()
        except (PeerUnavailable, PeerMisbehaved, LocalFault) as error:
            session.farewell = session.farewell or str(error)
        finally:
            with trio.CancelScope(shield=True):
                self._loop.leave(session.seat)
                await self._take_leave(session)
                await self._forget(session)

    async def _take_leave(self, session: Session) -> None:
        """Before anything else: a client that knows goes on elsewhere, while a step that still runs here ends."""
        if session.farewell is not None:
            opening = session.latest
            with trio.move_on_after(FAREWELL_S_MAX):
                await session.say(Failed(opening.session, opening.epoch, opening.hop, session.farewell[:500]))

    def _fail(self, seat: Seat, reason: str) -> None:
        session = self._session_of(seat)
        if session is not None:
            self._end(session, reason)

    def _lose(self, seat: Seat, reason: str) -> None:
        session = self._session_of(seat)
        if session is not None:
            session.lose(reason)

    def _session_of(self, seat: Seat) -> Session | None:
        session = self._sessions.get(seat.machine.id)
        return session if session is not None and session.seat is seat else None

    def _end(self, session: Session, farewell: str | None) -> None:
        """End a session from outside its task: in order, or with a `farewell` that is told to its client."""
        if not session.seat.ended:
            session.farewell = farewell
            machine = session.seat.machine
            # After a loss the row holds what stages computed that are no longer named in its route.
            kept = session.seat.entered and not self._draining
            if farewell is None and kept and machine.opening.prefix and machine.epoch == 0:
                session.worth_keeping = True
                self.room.prefixes.expect()
        self._loop.leave(session.seat)
        session.scope.cancel()

    async def _forget(self, session: Session) -> None:
        seat = session.seat
        if session.worth_keeping:
            await self.room.prefixes.keep(seat.machine, seat.row)
        await self.room.give_back(seat)
        del self._sessions[seat.machine.id]
        if not self._sessions:
            self._idle.set()
            self._idle = trio.Event()

    async def _say(self, peer: PeerId, message: SessionMessage) -> None:
        """To a client, whose link may be gone; then `on_lost` ends its sessions."""
        try:
            await self._links.send(peer, message)
        except PeerUnavailable as error:
            log.debug("client is gone", peer=peer, error=str(error))
