"""The heart of a stage: schedule the steps that wait, run them together, pass on what came of them."""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from p2pgrid.core.batching import BATCH_ROWS_MAX, Scheduler, Waiting
from p2pgrid.core.drawing import Drawn
from p2pgrid.core.load import Load
from p2pgrid.core.stage_session import Ignore, Refuse, Run
from p2pgrid.core.wire_choice import choose_form
from p2pgrid.engine.run_step import StepOut
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.engine.turns import Turn
from p2pgrid.errors import LocalFault, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.services.worker.batch import BatchRunner, Outcome, Ready, runs_alone
from p2pgrid.services.worker.outcome import messages_of
from p2pgrid.services.worker.seat import Queued, Seat
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.codec import FRAME_BYTES_MAX
from p2pgrid.wire.hidden import unpack_hidden
from p2pgrid.wire.messages import OutOfSync, SessionMessage, Step
from p2pgrid.wire.tensors import Floats, Ints, pack_ints, unpack_ints

STUCK_S = 1.0
"""A batch that takes longer may never end. Clients ask whether a stage is stuck after 3 s at the soonest."""
HIDDEN_BYTES_MAX = FRAME_BYTES_MAX - 16 * 1024
"""Hidden states of one step; what is left of the frame holds its token ids, targets and names."""


_Said = tuple[Seat, list[tuple[PeerId, SessionMessage]]]


class StageLoop:
    """Runs the steps of all seats. `fail(seat, reason)` ends a session, `lose(seat, reason)` halts one."""

    def __init__(
        self,
        stage: Stage,
        executor: Executor,
        links: Links,
        fail: Callable[[Seat, str], None],
        lose: Callable[[Seat, str], None],
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self._stage = stage
        self._runner = BatchRunner(stage, executor, tracer)
        self._links = links
        self._fail = fail
        self._lose = lose
        self._scheduler = Scheduler(BATCH_ROWS_MAX)
        self._seats: dict[int, Seat] = {}
        self._work = trio.Event()
        self._busy_since_s: float | None = None
        """Since when `run` waits for its turn, or computes; None while it does not."""
        self._idle = trio.Event()
        """Set when it has done so."""
        self.load = Load(trio.current_time())

    def enter(self, seat: Seat) -> None:
        seat.entered = True
        self._seats[seat.row] = seat

    def leave(self, seat: Seat) -> None:
        """No step of the seat begins any more; its credits go back."""
        seat.ended = True
        self._seats.pop(seat.row, None)
        self.halt(seat)

    def halt(self, seat: Seat) -> None:
        """The seat's epoch is over: of what waits nothing is run or sent. A step that runs comes to its end."""
        seat.halted = seat.deaf = True
        seat.waits = False
        self._scheduler.remove(seat.row)
        while seat.steps:
            seat.steps.popleft().release()
        seat.outbox.clear()
        seat.replay = None

    def put(self, seat: Seat, delivery: Delivery, step: Step) -> None:
        """A step of the seat's epoch came; `run_now` follows when no more do.

        Raises PeerMisbehaved for token ids that are none.
        """
        seat.heard_at = trio.current_time()
        if not step.draft:
            seat.until = step.until
            if self._is_under_way(seat, step):
                delivery.release()
                self._draft(seat)
                self.consider(seat)
                return
            self._supersede(seat, step.position)
        seat.steps.append(Queued(step, delivery.release))
        self.consider(seat)

    async def run(self) -> None:
        """Schedule, run, pass on, until cancelled."""
        while True:
            while not len(self._scheduler):
                self._work = trio.Event()
                await self._work.wait()
            self._busy_since_s = trio.current_time()
            try:
                # What comes while we wait for our turn joins the batch.
                async with self._runner.executor.turn(self._scheduler.kind) as turn:
                    if batch := self._next_batch(turn):
                        outcome = await self._runner.run(batch)
                        self._finish(batch, outcome, turn)
            finally:
                self._busy_since_s = None
                self._idle.set()
                self._idle = trio.Event()
            if len(self._scheduler):
                await trio.lowlevel.checkpoint()  # work that ran at once let nobody else do anything

    async def not_stuck(self) -> None:
        """Return at once, but for a batch that has taken so long that it may never end: then once it is over.

        Where a step never ends nobody's ever begins. Not each batch is waited for: an answer that is being recovered
        or handed over would wait for other sessions' steps.
        """
        if self._busy_since_s is not None and trio.current_time() - self._busy_since_s >= STUCK_S:
            await self._idle.wait()

    def run_now(self) -> None:
        """All that came together was `put`. Decode steps that take little time are run in the caller's own turn: that
        saves two of the scheduler's, which a single answer would wait for at every stage. The rest is left to `run`.
        """
        if self._busy_since_s is not None or not len(self._scheduler):
            return
        rows = self._scheduler.decode_rows
        turn = self._runner.turn_at_once(rows) if rows else None
        if turn is not None:
            try:
                if batch := self._next_batch(turn):
                    self._finish(batch, self._runner.run_here(batch), turn)
            finally:
                turn.end()
        if len(self._scheduler):
            self._work.set()

    # ── schedule ─────────────────────────────────────────────────────────────────────────────────────────

    def consider(self, seat: Seat) -> None:
        """Have the seat's first step wait for its turn, unless one waits or runs already, or it may run none."""
        if not seat.steps or seat.waits or seat.runs or seat.outbox or seat.halted:
            return
        step = seat.steps[0].step
        count = len(step.tokens) // 4 if step.want != "scores" else max(2, len(step.tokens) // 4)
        self._scheduler.add(Waiting(seat.row, seat.machine.client, count, step.draft))
        seat.waits = True

    def _is_under_way(self, seat: Seat, step: Step) -> bool:
        """Whether stage 0 has guessed this step's token and sent, or is about to send, the step already."""
        drafter = seat.machine.drafter
        if drafter is None:
            return False
        tokens = unpack_ints(step.tokens, self._stage.vocab).tolist()
        if len(tokens) == 1 and step.want == "token":
            return drafter.fed(step.position, tokens[0], seat.heard_at)
        drafter.saw(step.position, tokens)
        return False

    def _supersede(self, seat: Seat, position: int) -> None:
        """A real step takes back what drafts at its position and behind it would do: they need not run."""
        void = [queued for queued in seat.steps if queued.step.draft and queued.step.position >= position]
        if not void:
            return
        self._scheduler.remove(seat.row)
        seat.waits = False
        seat.steps = deque(queued for queued in seat.steps if queued not in void)
        for queued in void:
            queued.release()

    def _draft(self, seat: Seat) -> None:
        """Guess on from what is under way; the guesses are steps like any other."""
        machine = seat.machine
        if machine.drafter is None:
            return
        for position, token in machine.drafter.propose(min(seat.until, machine.context_max)):
            step = Step(
                machine.opening.session,
                machine.epoch,
                position,
                pack_ints([token]),
                want="token",
                until=seat.until,
                draft=True,
            )
            seat.steps.append(Queued(step, _nothing))

    def _next_batch(self, turn: Turn) -> list[Ready]:
        picked = self._scheduler.next(prefill_is_due=turn.prefill_is_due)
        return [ready for waiting in picked if (ready := self._check(waiting)) is not None]

    def _check(self, waiting: Waiting) -> Ready | None:
        """The seat's first step, if it is to be run; otherwise what is to be done about it is done."""
        seat = self._seats[waiting.row]  # whoever leaves is taken off the scheduler too
        seat.waits = False
        queued = seat.steps.popleft()
        step = queued.step
        try:
            tokens, hidden, targets = self._unpack(step)
            match seat.machine.on_step(step.epoch, step.position, tokens.tolist(), draft=step.draft):
                case Run():
                    seat.runs = True
                    return Ready(seat, queued, tokens, hidden, targets)
                case Refuse(length=length):
                    out_of_sync = OutOfSync(step.session, step.epoch, seat.machine.hop, length)
                    self.say(seat, seat.machine.client, out_of_sync)
                case Ignore():
                    pass
        except PeerMisbehaved as error:
            self._fail(seat, str(error))
        queued.release()
        self.consider(seat)
        return None

    def _unpack(self, step: Step) -> tuple[Ints, Floats | None, Ints]:
        """Tokens, hidden states and targets. Raises PeerMisbehaved for what does not fit the model."""
        stage = self._stage
        tokens = unpack_ints(step.tokens, stage.vocab)
        if 4 * len(tokens) * stage.hidden > HIDDEN_BYTES_MAX:
            positions = HIDDEN_BYTES_MAX // (4 * stage.hidden)
            raise PeerMisbehaved(f"a step of {len(tokens)} positions fits no frame: send {positions} or fewer at once")
        hidden = None
        if stage.span.start > 0:
            hidden = unpack_hidden(step.hidden, step.form, len(tokens), stage.hidden)
        targets = unpack_ints(step.targets, stage.vocab)
        if step.want == "scores" and len(targets) != len(tokens):
            raise PeerMisbehaved(f"{len(targets)} targets for {len(tokens)} positions")
        return tokens, hidden, targets

    # ── pass on ──────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, batch: Sequence[Ready], outcome: Outcome, turn: Turn) -> None:
        results, took_s = outcome
        alone = runs_alone(batch)
        turn.computed("prefill" if alone else "decode", sum(len(ready.tokens) for ready in batch))
        tokens = 0 if alone else sum(not ready.queued.step.draft for ready in batch)
        self.load.ran(tokens, took_s, trio.current_time())
        self._pass_on([self._done(*done, took_s) for done in zip(batch, results, strict=True)])

    def _done(self, ready: Ready, result: StepOut | LocalFault, took_s: float) -> _Said:
        """Note that the step has run; what is to be said about it."""
        seat, step = ready.seat, ready.queued.step
        ready.queued.release()
        seat.runs = False
        if seat.ended:
            return seat, []
        if isinstance(result, LocalFault):
            self._fail(seat, str(result))
            return seat, []
        if isinstance(result, Drawn):
            self.load.sampled(trio.current_time())
        machine = seat.machine
        machine.computed(step.position, ready.tokens.tolist())
        if machine.drafter is not None and step.want == "token" and len(ready.tokens) == 1:
            machine.drafter.sent(step.position, trio.current_time(), took_s)
        form = choose_form(machine.opening.wire, self._links.bandwidth_bytes_s(machine.downstream))
        messages = messages_of(machine, step, result, form, seat.sent.put)
        if seat.deaf:  # its session's task waits for this to be over
            seat.news.unpark_all()
            return seat, []
        return seat, messages

    def _pass_on(self, said: Sequence[_Said]) -> None:
        """Send what came of a batch, to each peer in one go: what was run together arrives together."""
        by_peer: dict[PeerId, list[tuple[Seat, SessionMessage]]] = {}
        for seat, messages in said:
            for peer, message in messages:
                by_peer.setdefault(peer, []).append((seat, message))
        for peer, for_peer in by_peer.items():
            for seat, message in for_peer:
                self.say(seat, peer, message, more=True)
            self._links.flush(peer)
        for seat, _ in said:
            if not seat.deaf:
                self._draft(seat)
                self.consider(seat)

    def say(self, seat: Seat, peer: PeerId, message: SessionMessage, *, more: bool = False) -> None:
        """Send now if the link has room, else leave it to the session's own task, in order."""
        try:
            if not seat.outbox and self._links.try_send(peer, message, more=more):
                return
        except PeerUnavailable as error:
            if peer != seat.machine.client:  # the loss of a client's link ends its sessions anyway
                self._lose(seat, str(error))
            return
        seat.outbox.append((peer, message))
        seat.news.unpark_all()


def _nothing() -> None:
    """Drafts of our own hold no credit."""
