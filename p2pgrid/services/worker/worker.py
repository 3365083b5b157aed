"""The stage side of the pipeline: the lives of the sessions that clients open here."""

from functools import partial

import structlog
import trio

from p2pgrid.core.kv_budget import KvBudget
from p2pgrid.core.load import Load
from p2pgrid.core.stage_session import StageSession, check_route
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.services.worker.loop import StageLoop
from p2pgrid.services.worker.prefixes import Prefixes
from p2pgrid.services.worker.seat import Seat
from p2pgrid.services.worker.sent import SentLog
from p2pgrid.services.worker.session import Here, Session
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.messages import (
    Busy,
    Close,
    Failed,
    Open,
    Replay,
    SessionMessage,
    Step,
)

log = structlog.get_logger()

FAREWELL_S_MAX = 0.5
ENDING_S = 0.1
"""After which a session that ends is over, about."""
SESSION_POSITIONS = 1024
"""What an ordinary session is taken for when a node says for how many more it has room."""


class Worker:
    """Serves the sessions that clients open on this node's stage."""

    def __init__(
        self,
        model: ModelId,
        stage: Stage,
        executor: Executor,
        links: Links,
        own: PeerId,
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self._model = model
        self._stage = stage
        self._executor = executor
        self._links = links
        self._own = own
        self._free_rows = list(reversed(range(stage.rows)))
        self._budget = KvBudget(stage.kv_positions * stage.position_bytes)
        self._sent = SentLog()
        self._loop = StageLoop(stage, executor, links, self._fail, self._lose, tracer)
        self.prefixes = Prefixes(stage, executor, lambda: self._budget.cache_room)
        self._here = Here(own, stage, links, self._loop, self.prefixes)
        self._sessions: dict[SessionId, Session] = {}
        self._tasks: trio.Nursery | None = None
        self._draining = False
        self._idle = trio.Event()

    @property
    def sessions_free(self) -> int:
        ordinary = min(SESSION_POSITIONS, self._stage.context_max) * self._stage.position_bytes
        return 0 if self._draining else min(len(self._free_rows), self._budget.cache_room // ordinary)

    @property
    def positions_free(self) -> int:
        """Token positions for which new sessions can reserve room."""
        return 0 if self._draining else self._budget.cache_room // self._stage.position_bytes

    @property
    def positions_max(self) -> int:
        """For how many there is room when no session is open."""
        return self._budget.bytes_max // self._stage.position_bytes

    @property
    def load(self) -> Load:
        return self._loop.load

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    @property
    def kv_bytes(self) -> int:
        """What sessions have reserved and finished ones have left behind."""
        return self._budget.reserved + self.prefixes.nbytes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._tasks:
            self._tasks.start_soon(self._loop.run)
            task_status.started()

    async def drain(self, deadline_s: float) -> None:
        """Take no new session; wait for those that run, end what is left after `deadline_s`, and say so."""
        self._draining = True
        with trio.move_on_after(deadline_s):
            await self._wait_idle()
        for session in list(self._sessions.values()):
            self._end(session, "the node is leaving")
        with trio.move_on_after(FAREWELL_S_MAX):
            await self._wait_idle()
        self.prefixes.forget()

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
        failed = partial(Failed, opening.session, opening.epoch, opening.hop)
        known = self._sessions.get(opening.session)
        if known is not None:
            await self._reopen(known, client, opening)
            return
        machine = StageSession(client, opening, self._stage.context_max)
        try:
            if opening.model != self._model:
                raise PeerMisbehaved(f"this node serves model {self._model[:12]}, not {opening.model[:12]}")
            check_route(opening, self._own, self._stage.span, self._stage.layers)
            need = machine.context_max * self._stage.position_bytes
            if not self._budget.fits_ever(need):
                raise PeerMisbehaved(f"{machine.context_max} positions are more than this node has memory for")
        except PeerMisbehaved as error:
            await self._say(client, failed(str(error)))
            return
        now = trio.current_time()
        takes = self._tasks is not None and not self._draining and bool(self._free_rows)
        if not (takes and self._budget.reserve(machine.id, need, now)):
            after_s = self._budget.retry_after_s()
            await self._say(client, Busy(opening.session, opening.epoch, opening.hop, after_s))
            return
        self.prefixes.trim()
        session = Session(self._here, Seat(machine, self._free_rows.pop(), self._sent.open()))
        self._sessions[opening.session] = session
        assert self._tasks is not None
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
            if farewell is None and session.seat.entered and machine.opening.prefix and machine.epoch == 0:
                session.worth_keeping = True
                self.prefixes.expect()
        self._loop.leave(session.seat)
        session.scope.cancel()

    async def _forget(self, session: Session) -> None:
        seat = session.seat
        seat.sent.close()
        if session.worth_keeping:
            await self.prefixes.keep(seat.machine, seat.row)
        # In the executor's lane, so behind a step of this row that may still be running.
        await self._executor.run(partial(self._stage.release, seat.row))
        self._free_rows.append(seat.row)
        self._free_rows.sort(reverse=True)  # low rows first: those of a batch had best lie next to each other
        self._budget.release(seat.machine.id, trio.current_time())
        self.prefixes.trim()
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
