"""The life of a node: join, choose a span, build the stage, test it, advertise, serve, move or drain, leave.

While its owner needs the machine it is away, and then begins again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog
import trio

from p2pgrid import __version__
from p2pgrid.core.rebalancing import Move
from p2pgrid.core.routing import replicas
from p2pgrid.core.swarm_view import worth_telling
from p2pgrid.engine.json_schema import JsonGrammars
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.ids import ModelId, Span
from p2pgrid.node.canary import Canary
from p2pgrid.node.choosing import choose_span, look_again
from p2pgrid.node.moving import Mover
from p2pgrid.node.peer import Peer
from p2pgrid.node.selftest import Proof, prove_stage
from p2pgrid.services.owner_watch import OwnerWatch
from p2pgrid.services.worker import Worker
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Hop

log = structlog.get_logger()

Phase = Literal["joining", "building", "testing", "serving", "moving", "draining", "away", "left"]
STATES: dict[Phase, Literal["joining", "serving", "draining"]] = {
    "joining": "joining",
    "building": "joining",
    "testing": "joining",
    "serving": "serving",
    "moving": "draining",
    "draining": "draining",
    "away": "draining",
    "left": "draining",
}
"""What is advertised in each."""

DRAIN_S_MAX = 0.7
"""How long sessions may go on after a node was told to stop; with the farewells it leaves within 2 s."""
NEWS_S = 4.0
"""So often a node looks whether what it says of itself is still so."""
MOVE_DRAIN_S_MAX = 10.0
"""The same when a node moves to other layers, and none are missing, or when its owner has come back."""


@dataclass(frozen=True)
class Serving:
    """What a node offers: a model, and how much of it."""

    model: ModelId
    model_name: str
    layers: int
    span: Span | None
    """None = choose one, help the worst-covered layers first."""
    span_max: int


Reason = Move | Literal["told", "owner"]
"""Why a node gives up its stage: to hold other layers, because it was told to leave, or for its owner's sake."""

MakeStage = Callable[[Span], Awaitable[Stage]]
"""Builds a stage, off the event loop. Raises LocalFault."""


class Node:
    """One node on `peer`. `on_phase` hears of every step of its life.

    Without `grammars` it takes no JSON schema; without an `owner_watch` nobody but `stop` ends its service.
    """

    def __init__(
        self,
        peer: Peer,
        serving: Serving,
        make_stage: MakeStage,
        executor: Executor,
        on_phase: Callable[[Phase, Span | None], None],
        grammars: JsonGrammars | None = None,
        owner_watch: OwnerWatch | None = None,
    ) -> None:
        self.phase: Phase = "joining"
        self.span = serving.span
        self._peer = peer
        self._serving = serving
        self._make_stage = make_stage
        self._executor = executor
        self._on_phase = on_phase
        self._grammars = grammars
        self._owner_watch = owner_watch
        self._wanted = serving.model, serving.layers, serving.span_max
        self._mover = Mover(peer, *self._wanted, self._publish)
        self._canary = Canary(peer, serving.model, serving.layers)
        self._proof = Proof(0.0, 0.0)
        self._since_s = 0.0
        self._stage: Stage | None = None
        self._leave_s_max = DRAIN_S_MAX

    @property
    def sessions_open(self) -> int:
        return 0 if self._peer.worker is None else self._peer.worker.sessions_open

    def leave_within(self, seconds: float) -> None:
        """From now on, being told to stop means to have left after so long."""
        self._leave_s_max = seconds
        if self.phase == "draining" and self._peer.worker is not None:
            self._peer.worker.hurry(seconds)

    async def run(self, stop: trio.Event) -> None:
        """Live until `stop`. Raises LocalFault when the stage cannot be built or fails its test."""
        try:
            async with trio.open_nursery() as tasks:
                if self._owner_watch is not None:
                    tasks.start_soon(self._owner_watch.run)
                tasks.start_soon(self._live, stop, tasks)
                await stop.wait()
                if self.phase not in ("serving", "draining"):
                    tasks.cancel_scope.cancel()
        finally:
            self._close_stage()
        self._enter("left")

    async def _live(self, stop: trio.Event, tasks: trio.Nursery) -> None:
        while True:
            self._enter("joining")
            if self._serving.span is None:
                await self._peer.discovery.publish(self._advert)
                self.span = await choose_span(self._peer, *self._wanted)
            while isinstance(reason := await self._hold_layers(stop), Move):
                self.span = reason.span
            if reason == "told" or stop.is_set():
                break
            await self._stay_away()
        tasks.cancel_scope.cancel()

    async def _stay_away(self) -> None:
        """Hold nothing while the owner needs the machine."""
        assert self._owner_watch is not None
        self.span, self._mover.claim = self._serving.span, None
        self._enter("away")
        await self._peer.discovery.withdraw(self._advert())
        await self._owner_watch.wait_until_gone()

    async def _hold_layers(self, stop: trio.Event) -> Reason:
        """Build, serve and give up one stage."""
        await self._build()
        if self._owner_watch is not None and self._owner_watch.owner_is_back:
            self._close_stage()
            return "owner"
        async with trio.open_nursery() as tasks:
            worker = await self._start_worker(tasks)
            reason = await self._serve(stop)
            self._enter("moving" if isinstance(reason, Move) else "draining")
            await self._peer.discovery.withdraw(self._advert())
            # A gap is filled at once: sessions through here have lost another stage of their route anyway.
            urgent = isinstance(reason, Move) and reason.urgent
            patience_s = DRAIN_S_MAX if urgent else MOVE_DRAIN_S_MAX
            await worker.drain(self._leave_s_max if stop.is_set() else patience_s, self._replicas)
            tasks.cancel_scope.cancel()
        self._close_stage()
        return reason

    async def _serve(self, stop: trio.Event) -> Reason:
        """Until there is a reason to end it."""
        self._mover.claim = None
        self._since_s = self._peer.discovery.now_s()
        self._enter("serving")
        reason: Reason = "told"

        async def wait_to_move(current: Span) -> None:
            nonlocal reason
            reason = await self._mover.next_move(current)
            tasks.cancel_scope.cancel()

        async def wait_for_owner(watch: OwnerWatch) -> None:
            nonlocal reason
            await watch.wait_until_back()
            reason = "owner"
            tasks.cancel_scope.cancel()

        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._publish)
            tasks.start_soon(self._tell_news)
            if self.span is not None and self.span.start == 0:
                tasks.start_soon(self._canary.run)
            if self._serving.span is None and self.span is not None:
                tasks.start_soon(wait_to_move, self.span)
            if self._owner_watch is not None:
                tasks.start_soon(wait_for_owner, self._owner_watch)
            await stop.wait()
            tasks.cancel_scope.cancel()  # whoever has not heard it by now need not know
        return "told" if stop.is_set() else reason

    async def _start_worker(self, tasks: trio.Nursery) -> Worker:
        assert self._stage is not None
        peer = self._peer
        worker = Worker(
            self._serving.model,
            self._stage,
            self._executor,
            peer.links,
            peer.transport,
            tracer=peer.tracer,
            grammars=self._grammars,
        )
        await tasks.start(worker.run)
        # It stays the peer's until the next one is there: drained, it tells whoever asks that it is busy.
        peer.worker = worker
        return worker

    def _replicas(self, positions: int) -> Sequence[Hop]:
        """Who could go on with a session of so many positions in our place."""
        assert self.span is not None
        model = self._serving.model
        return replicas(self._peer.view.adverts(model), self.span, positions, self._peer.delays_ms(model))

    def _close_stage(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._on_phase(phase, self.span)

    async def _publish(self) -> None:
        await self._peer.discovery.publish(self._advert)

    async def _tell_news(self) -> None:
        """Whoever asks hears soon what has become of our load, our neighbours and the tokens that we saw."""
        while True:
            await trio.sleep(NEWS_S * self._peer.rng.uniform(0.8, 1.2))
            told = self._peer.discovery.own_advert()
            if told is not None and worth_telling(told[0], self._advert()):
                self._peer.discovery.renew()

    def _advert(self) -> Advert:
        now = trio.current_time()
        bare = Advert(
            peer=self._peer.transport.peer,
            addresses=(),
            model=self._serving.model,
            layers=self._serving.layers,
            state=STATES[self.phase],
            span=self.span,
            span_max=self._serving.span_max,
            sequence=0,
            expires_at_s=0.0,
            model_name=self._serving.model_name,
            agent=f"p2pgrid/{__version__}",
            moving_to=None if self._mover.claim == self.span else self._mover.claim,
            away=self.phase == "away",
        )
        worker = self._peer.worker
        if self.phase != "serving" or worker is None:
            return bare
        return msgspec.structs.replace(
            bare,
            step_ms=self._proof.step_ms,
            tokens_per_s_max=self._proof.tokens_per_s_max,
            since_s=self._since_s,
            sessions_free=worker.room.sessions_free,
            sessions_open=worker.sessions_open,
            positions_free=min(worker.room.positions_free, 2**31 - 1),
            positions_max=min(worker.room.positions_max, 2**31 - 1),
            queue_ms=worker.load.queue_ms(now),
            tokens_per_s=worker.load.tokens_per_s(now),
            delays_ms=self._peer.delays_ms(self._serving.model),
            canary_at_s=self._token_seen_at_s(worker),
        )

    def _token_seen_at_s(self, worker: Worker) -> float:
        """Unix time of the latest token that had gone through a whole route: a canary, or one that was sampled here."""
        sampled_at = worker.load.token_at_s
        if sampled_at is None:
            return self._canary.seen_at_s
        return max(self._canary.seen_at_s, self._peer.discovery.now_s() - (trio.current_time() - sampled_at))

    async def _build(self) -> None:
        """Build, and look again: while building, others may have chosen the same layers. Then test what was built."""
        while True:
            assert self.span is not None
            self._enter("building")
            await self._publish()
            self._stage = await self._make_stage(self.span)
            better = self.span
            if self._serving.span is None:
                better = await look_again(self._peer, *self._wanted, self.span)
            if better == self.span:
                break
            log.info("another node took the same layers first", layers=str(self.span), instead=str(better))
            self._close_stage()
            self.span = better
        self._enter("testing")
        self._proof = await prove_stage(self._stage, self._executor)
