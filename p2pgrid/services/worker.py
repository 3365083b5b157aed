"""The stage side of the pipeline: holds sessions' KV rows, runs their steps, pushes results to the next stage."""

from collections.abc import Callable
from functools import partial

import structlog
import trio

from p2pgrid.core.stage_session import Ignore, Refuse, Run, StageSession, check_route
from p2pgrid.engine.run_step import HiddenOut, ScoresOut, StepOut, TokenOut, run_step
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.wire.codec import FRAME_BYTES_MAX
from p2pgrid.wire.messages import (
    Busy,
    Close,
    Contact,
    Failed,
    Open,
    Opened,
    OutOfSync,
    Scores,
    SessionMessage,
    Step,
    Token,
)
from p2pgrid.wire.tensors import pack_floats, pack_ints, unpack_floats, unpack_ints

log = structlog.get_logger()

RETRY_AFTER_S = 1.0
FAREWELL_S_MAX = 0.5
SESSION_IDLE_S_MAX = 120.0
"""A KV row is not held longer than this for a client that lives and sends nothing."""
HIDDEN_BYTES_MAX = FRAME_BYTES_MAX - 16 * 1024
"""Hidden states of one step; what is left of the frame holds its token ids, targets and names."""


class _Session:
    """One session here: its machine, its KV row, and the steps that wait. Its task alone works on them."""

    def __init__(self, machine: StageSession, row: int) -> None:
        self.machine = machine
        self.row = row
        # Unbounded in number, bounded in bytes: a step's share of its link's window is given back only when
        # the step was run.
        self.enqueue, self.steps = trio.open_memory_channel[Delivery](float("inf"))
        self.scope = trio.CancelScope()
        self.ending = False
        """No step is taken any more; the row is given back as soon as the executor has come to it."""
        self.farewell: str | None = None


class Worker:
    """Serves the sessions that clients open on this node's stage.

    One task a session, so that a slow neighbour holds up nobody else; the executor takes their steps in turn.
    """

    def __init__(self, model: ModelId, stage: Stage, executor: Executor, links: Links, own: PeerId) -> None:
        self._model = model
        self._stage = stage
        self._executor = executor
        self._links = links
        self._own = own
        self._free_rows = list(reversed(range(stage.rows)))
        self._sessions: dict[SessionId, _Session] = {}
        self._tasks: trio.Nursery | None = None
        self._draining = False
        self._idle = trio.Event()

    @property
    def sessions_free(self) -> int:
        return 0 if self._draining else len(self._free_rows)

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._tasks:
            task_status.started()
            await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None:
        """Take no new session; wait for those that run, end what is left after `deadline_s`, and say so."""
        self._draining = True
        with trio.move_on_after(deadline_s):
            await self._wait_idle()
        for session in list(self._sessions.values()):
            self._end(session, "the node is leaving")
        with trio.move_on_after(FAREWELL_S_MAX):
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._sessions:
            await self._idle.wait()

    async def on_message(self, delivery: Delivery) -> None:
        """Called by the links, in order for each peer. Raises PeerMisbehaved for what cuts the peer off."""
        match delivery.message:
            case Open() as opening:
                await self._open(delivery.peer, opening)
            case Step() as step:
                session = self._sessions.get(step.session)
                if session is not None:
                    self._enqueue(session, delivery)
                    return
            case Close(session=session_id):
                session = self._sessions.get(session_id)
                if session is not None and session.machine.client == delivery.peer:
                    self._end(session, None)
            case _:
                raise PeerMisbehaved(f"{type(delivery.message).__name__} is not for a stage", delivery.peer)
        delivery.release()

    def on_lost(self, peer: PeerId, reason: str) -> None:
        """A link is gone: a client's sessions end; sessions that send to a lost stage tell their client."""
        for session in list(self._sessions.values()):
            if session.machine.client == peer:
                self._end(session, None)
            elif session.machine.downstream == peer:
                span = session.machine.next_hop.span
                self._end(session, f"lost the link to the next stage (layers {span} on {peer}): {reason}")

    async def _open(self, client: PeerId, opening: Open) -> None:
        say = partial(self._say, client)
        known = self._sessions.get(opening.session)
        if known is not None:
            await say(Failed(opening.session, opening.epoch, opening.hop, "a session of this id is open already"))
            return
        try:
            if opening.model != self._model:
                raise PeerMisbehaved(f"this node serves model {self._model[:12]}, not {opening.model[:12]}")
            check_route(opening, self._own, self._stage.span, self._stage.layers)
        except PeerMisbehaved as error:
            await say(Failed(opening.session, opening.epoch, opening.hop, str(error)))
            return
        if not self.sessions_free or self._tasks is None:
            await say(Busy(opening.session, opening.epoch, opening.hop, RETRY_AFTER_S))
            return
        session = _Session(StageSession(client, opening, self._stage.context_max), self._free_rows.pop())
        self._sessions[opening.session] = session
        self._tasks.start_soon(self._serve, session)

    def _enqueue(self, session: _Session, delivery: Delivery) -> None:
        if not session.machine.may_send(delivery.peer):
            log.warning("step from a peer that is not in the session's route", peer=delivery.peer)
            delivery.release()
        elif session.ending:
            delivery.release()
        else:
            session.enqueue.send_nowait(delivery)

    def _end(self, session: _Session, farewell: str | None) -> None:
        """End a session from outside its task; `farewell` is told to its client."""
        session.farewell = farewell
        session.scope.cancel()

    async def _serve(self, session: _Session) -> None:
        """The life of one session. Gives its row back, whatever happens."""
        machine = session.machine
        try:
            with session.scope:
                if not machine.opening.relayed:
                    following = machine.next_hop
                    await self._links.connect(Contact(following.peer, following.addresses))
                # Not `_say`: a client whose link was lost before its session was known here is lost for good.
                await self._links.send(machine.client, Opened(machine.opening.session, machine.epoch, machine.hop))
                while True:
                    delivery = await self._next_step(session)
                    try:
                        await self._step(session, delivery.message)
                    finally:
                        delivery.release()
        except (PeerUnavailable, PeerMisbehaved, LocalFault) as error:
            session.farewell = str(error)
        finally:
            with trio.CancelScope(shield=True):
                await self._forget(session)
        if session.farewell is not None:
            with trio.move_on_after(FAREWELL_S_MAX):
                await self._say(
                    machine.client, Failed(machine.opening.session, machine.epoch, machine.hop, session.farewell[:500])
                )

    async def _next_step(self, session: _Session) -> Delivery:
        """The next step to run. Raises PeerUnavailable when none comes for longer than a client may think."""
        with trio.move_on_after(SESSION_IDLE_S_MAX):
            return await session.steps.receive()
        raise PeerUnavailable(f"no step came for {SESSION_IDLE_S_MAX:.0f} s", session.machine.client)

    async def _forget(self, session: _Session) -> None:
        session.ending = True
        for delivery in _waiting(session):
            delivery.release()
        # In the executor's lane, so behind a step of this row that may still be running.
        await self._executor.run(partial(self._stage.release, session.row))
        self._free_rows.append(session.row)
        del self._sessions[session.machine.opening.session]
        if not self._sessions:
            self._idle.set()
            self._idle = trio.Event()

    async def _step(self, session: _Session, message: SessionMessage) -> None:
        assert isinstance(message, Step)  # `on_message` enqueues nothing else
        machine = session.machine
        count = len(message.tokens) // 4
        match machine.on_step(message.epoch, message.position, count):
            case Ignore():
                return
            case Refuse(length=length):
                await self._say(machine.client, OutOfSync(message.session, message.epoch, machine.hop, length))
            case Run():
                result = await self._executor.run(self._work(session, message))
                machine.computed(message.position, count)
                await self._pass_on(machine, message, message.position + count, result)

    def _work(self, session: _Session, step: Step) -> Callable[[], StepOut]:
        """What the executor runs for `step`. Raises PeerMisbehaved for tensors that do not fit the model."""
        stage = self._stage
        tokens = unpack_ints(step.tokens, stage.vocab)
        if 4 * len(tokens) * stage.hidden > HIDDEN_BYTES_MAX:
            positions = HIDDEN_BYTES_MAX // (4 * stage.hidden)
            raise PeerMisbehaved(f"a step of {len(tokens)} positions fits no frame: send {positions} or fewer at once")
        hidden = None if stage.span.start == 0 else unpack_floats(step.hidden, len(tokens), stage.hidden)
        targets = unpack_ints(step.targets, stage.vocab)
        if step.want == "scores" and len(targets) != len(tokens):
            raise PeerMisbehaved(f"{len(targets)} targets for {len(tokens)} positions")
        return partial(
            run_step,
            stage,
            session.row,
            step.position,
            tokens,
            hidden,
            want=step.want,
            targets=targets,
            sampling=session.machine.opening.sampling,
        )

    async def _pass_on(self, machine: StageSession, step: Step, position: int, result: StepOut) -> None:
        """To the next stage; or, at the last one, to the client and, as far as it granted, to stage 0."""
        match result:
            case HiddenOut(hidden=hidden):
                onward = Step(
                    step.session,
                    step.epoch,
                    step.position,
                    step.tokens,
                    hidden=pack_floats(hidden),
                    want=step.want,
                    targets=step.targets,
                    until=step.until,
                )
                await self._links.send(machine.downstream, onward)
            case TokenOut(token=token):
                if machine.feeds_on(position, token, step.until):
                    fed = Step(step.session, step.epoch, position, pack_ints([token]), want="token", until=step.until)
                    await self._links.send(machine.downstream, fed)
                await self._say(machine.client, Token(step.session, step.epoch, position, token))
            case ScoresOut(top1=top1, next_logprobs=logprobs):
                scores = Scores(step.session, step.epoch, step.position, pack_ints(top1), pack_floats(logprobs))
                await self._say(machine.client, scores)
            case None:
                pass

    async def _say(self, peer: PeerId, message: SessionMessage) -> None:
        """To a client, whose link may be gone; then `on_lost` ends its sessions."""
        try:
            await self._links.send(peer, message)
        except PeerUnavailable as error:
            log.debug("client is gone", peer=peer, error=str(error))


def _waiting(session: _Session) -> list[Delivery]:
    found: list[Delivery] = []
    while True:
        try:
            found.append(session.steps.receive_nowait())
        except trio.WouldBlock:
            return found
