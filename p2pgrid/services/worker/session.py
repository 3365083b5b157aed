"""The life of one session at a stage, epoch after epoch: its client may move it to another route at any time."""

import contextlib
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from p2pgrid.core.stage_session import check_route
from p2pgrid.engine.json_schema import JsonGrammars
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import BadInput, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.links import Links
from p2pgrid.services.worker.loop import StageLoop
from p2pgrid.services.worker.outcome import again
from p2pgrid.services.worker.prefixes import Prefixes
from p2pgrid.services.worker.seat import Seat
from p2pgrid.wire.messages import Contact, Lost, Open, Opened, Replay, SessionMessage, Step

log = structlog.get_logger()

SESSION_IDLE_S_MAX = 120.0
"""A KV row is not held longer than this for a client that lives and sends nothing."""
SUSPENDED_S_MAX = 30.0
"""A session that lost its next stage waits so long for its client to come with another route."""


@dataclass(frozen=True)
class Here:
    """What the sessions of one stage share."""

    own: PeerId
    stage: Stage
    executor: Executor
    links: Links
    loop: StageLoop
    prefixes: Prefixes
    grammars: JsonGrammars | None
    """None = no answer is held to a schema."""


class Session:
    """One session here. `live` runs in the session's own task; the rest is called by others, and never waits."""

    def __init__(self, here: Here, seat: Seat) -> None:
        self.seat = seat
        self.scope = trio.CancelScope()
        """Of its whole life."""
        self.farewell: str | None = None
        self.worth_keeping = False
        """It ended in order, and its client looks for prefixes: what it prefilled may serve others."""
        self._here = here
        self._epoch_scope = trio.CancelScope()
        self._reopening: Open | None = None
        """The opening of the next epoch, until that has begun."""
        self._suspended = False
        """The next stage is lost."""
        self._next_step: trio.Event | None = None
        """While somebody waits for it: set when it comes, or is void."""

    @property
    def latest(self) -> Open:
        """The opening that holds, or is about to."""
        return self._reopening or self.seat.machine.opening

    def reopen(self, opening: Open) -> None:
        """Its client has another route: what was under way is void, the row stays."""
        self._reopening = opening
        if self._next_step is not None:
            self._next_step.set()
        self._here.loop.halt(self.seat)
        self._epoch_scope.cancel()

    @property
    def waits(self) -> bool:
        """For its client to come with another route."""
        return self._suspended and self._reopening is None and not self.seat.ended

    def park(self) -> None:
        """From its beginning it waits for its client: another stage fills the row, whose place this one takes."""
        self._here.loop.enter(self.seat)
        self.hold_still()

    def hold_still(self) -> None:
        """Run no step and take none, until the client comes with another route."""
        self._here.loop.halt(self.seat)
        self._suspended = True
        self.seat.heard_at = trio.current_time()

    async def hold_between_steps(self, patience_s: float) -> None:
        """`hold_still` with the next step here and not begun: by then the client has what came of the one before. Any
        sooner, later stages would still be at that, for nothing, and all would compute it again. But no later than
        `patience_s` after a step.
        """
        before = self.latest
        if all(queued.step.draft for queued in self.seat.steps):
            self._next_step = trio.Event()
            try:
                with trio.move_on_at(self.seat.heard_at + patience_s):
                    await self._next_step.wait()
            finally:
                self._next_step = None
        if self.latest is before and not self._suspended and not self.seat.ended:
            self.hold_still()

    def stops_before(self, step: Step) -> bool:
        """Whether `step` is the one that `hold_between_steps` waits for; then no more are taken."""
        if self._next_step is None or self._next_step.is_set() or step.draft:
            return False
        self._next_step.set()
        self.hold_still()
        return True

    def lost_link(self, peer: PeerId, reason: str) -> None:
        """Some link is gone: if it is the one to the next stage, say so, and keep the row for another route."""
        if peer == self.seat.machine.downstream:
            self.lose(reason)

    def lose(self, reason: str) -> None:
        """The next stage cannot be reached."""
        seat, machine = self.seat, self.seat.machine
        if seat.deaf:
            return
        self.hold_still()
        lost = Lost(machine.id, machine.epoch, machine.hop, machine.downstream, reason[:500])
        self._here.loop.say(seat, machine.client, lost)
        seat.news.unpark_all()

    def replay(self, asked: Replay) -> None:
        """The client knows what all stages hold: what some lack goes out first, then steps are run again."""
        seat = self.seat
        if seat.machine.epoch == asked.epoch and seat.halted and not seat.deaf and seat.replay is None:
            seat.replay = (again(step, asked) for step in seat.sent.between(asked.start, asked.stop))
            seat.news.unpark_all()

    async def live(self) -> None:
        """Until cancelled. Raises PeerUnavailable, PeerMisbehaved, LocalFault for what ends the session."""
        with self.scope:
            while True:
                with self._epoch_scope:
                    await self._serve()
                await self._begin_next()

    async def say(self, message: SessionMessage) -> None:
        """To the client, whose link may be gone; then `Worker.on_lost` ends its sessions."""
        client = self.seat.machine.client
        try:
            await self._here.links.send(client, message)
        except PeerUnavailable as error:
            log.debug("client is gone", peer=client, error=str(error))

    async def _serve(self) -> None:
        """One epoch, until it is cancelled."""
        seat, machine, here = self.seat, self.seat.machine, self._here
        await self._link_onward()
        if self._suspended:
            await self._link_back()
        if not seat.deaf:
            await self._hold_to_schema()
        if not seat.entered and not seat.deaf:
            await here.prefixes.fill(machine, seat.row)
            here.loop.enter(seat)
        if not seat.deaf:
            replays_from = machine.length if seat.sent.start is None else seat.sent.start
            opened = Opened(machine.id, machine.epoch, machine.hop, machine.length, replays_from)
            # Not `say`: a client whose link was lost before its session was known here is lost for good.
            await here.links.send(machine.client, opened)
        while True:
            await self._woken()
            await self._send_waiting()

    async def _link_back(self) -> None:
        """Whoever will send steps here need not dial then."""
        machine = self.seat.machine
        before = machine.opening.route[machine.hop - 1]
        with contextlib.suppress(PeerUnavailable):
            await self._here.links.connect(Contact(before.peer, before.addresses))

    async def _hold_to_schema(self) -> None:
        """Raises PeerMisbehaved for a schema that its client should have refused."""
        machine, drawer, grammars = self.seat.machine, self.seat.drawer, self._here.grammars
        if not machine.opening.json_schema or drawer.grammar is not None:
            return
        if grammars is None:
            raise PeerMisbehaved("this stage cannot hold an answer to a JSON schema")
        try:
            drawer.grammar = await grammars.grammar(machine.opening.json_schema)
        except BadInput as error:
            raise PeerMisbehaved(str(error)) from error
        # A row that was handed over may hold a part of the answer.
        await self._here.executor.run(partial(drawer.saw, 0, machine.tokens))

    async def _link_onward(self) -> None:
        machine = self.seat.machine
        if machine.opening.relayed:
            return
        following = machine.next_hop
        try:
            await self._here.links.connect(Contact(following.peer, following.addresses))
        except PeerUnavailable as error:
            self.lose(str(error))

    async def _begin_next(self) -> None:
        """Take the opening that came, once the step under way is over. A stage that is stuck in any session's step
        must not say that it goes on.
        """
        seat, stage = self.seat, self._here.stage
        if seat.runs:
            await seat.at_rest()
        else:
            await self._here.loop.not_stuck()
        assert self._reopening is not None, "nothing else ends an epoch"
        check_route(self._reopening, self._here.own, stage.span, stage.layers)
        seat.machine.reopen(self._reopening)
        seat.heard_at = trio.current_time()
        seat.deaf = self._suspended = False
        self._reopening = None
        self._epoch_scope = trio.CancelScope()

    async def _woken(self) -> None:
        """Something is to be sent. Raises PeerUnavailable when the session is silent for too long."""
        seat = self.seat
        while not seat.outbox and seat.replay is None:
            patience_s = SUSPENDED_S_MAX if self._suspended else SESSION_IDLE_S_MAX
            silent_at = seat.heard_at + patience_s
            if trio.current_time() >= silent_at:
                awaited = "other route" if self._suspended else "step"
                raise PeerUnavailable(f"no {awaited} came for {patience_s:.0f} s", seat.machine.client)
            with trio.move_on_at(silent_at):
                await seat.news.park()

    async def _send_waiting(self) -> None:
        """What waits stays in its place until it is sent, so that nothing overtakes it. Sending may itself find that a
        link is broken: then the epoch is over, and all that waited has gone.
        """
        seat, links = self.seat, self._here.links
        try:
            if (replay := seat.replay) is not None:
                for step in replay:
                    await links.send(seat.machine.downstream, step)
                if seat.replay is replay:
                    seat.replay, seat.halted = None, False
            while seat.outbox:
                peer, message = first = seat.outbox[0]
                if peer == seat.machine.client:
                    await self.say(message)
                else:
                    await links.send(peer, message)
                if seat.outbox and seat.outbox[0] is first:
                    seat.outbox.popleft()
        except PeerUnavailable as error:
            self.lose(str(error))
        self._here.loop.consider(seat)
        self._here.loop.run_now()
