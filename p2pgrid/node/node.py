"""The life of a node: join, choose a span, build the stage, test it, advertise, serve, drain, leave."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import structlog
import trio

from p2pgrid import __version__
from p2pgrid.core.placement import plan_joins, settle
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.node.peer import Peer
from p2pgrid.node.selftest import prove_stage
from p2pgrid.services.worker import Worker
from p2pgrid.wire.adverts import Advert

log = structlog.get_logger()

Phase = Literal["joining", "building", "testing", "serving", "draining", "left"]

JOIN_QUIET_S = 0.8
"""A joining node decides once no new joiner was heard of for this long, so that nodes started together agree."""
JOIN_S_MAX = 4.0
DRAIN_S_MAX = 0.7
"""How long sessions may go on after a node was told to stop; with the farewells it leaves within 2 s."""


@dataclass(frozen=True)
class Serving:
    """What a node offers: a model, and how much of it."""

    model: ModelId
    model_name: str
    layers: int
    span: Span | None
    """None = choose one, help the worst-covered layers first."""
    span_max: int


MakeStage = Callable[[Span], Awaitable[Stage]]
"""Builds a stage, off the event loop. Raises LocalFault."""


class Node:
    """One node on `peer`. `on_phase` hears of every step of its life."""

    def __init__(
        self,
        peer: Peer,
        serving: Serving,
        make_stage: MakeStage,
        executor: Executor,
        on_phase: Callable[[Phase, Span | None], None],
    ) -> None:
        self.phase: Phase = "joining"
        self.span = serving.span
        self._peer = peer
        self._serving = serving
        self._make_stage = make_stage
        self._executor = executor
        self._on_phase = on_phase
        self._step_ms = 0.0
        self._stage: Stage | None = None

    async def run(self, stop: trio.Event) -> None:
        """Live until `stop`. Raises LocalFault when the stage cannot be built or fails its test."""
        try:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._live, stop, tasks)
                await stop.wait()
                if self.phase not in ("serving", "draining"):
                    tasks.cancel_scope.cancel()
        finally:
            if self._stage is not None:
                self._stage.close()
        self._enter("left")

    async def _live(self, stop: trio.Event, tasks: trio.Nursery) -> None:
        worker = await self._settle_and_build(tasks)
        self._enter("serving")
        async with trio.open_nursery() as telling:
            telling.start_soon(self._peer.discovery.publish, self._advert)
            await stop.wait()
            telling.cancel_scope.cancel()  # whoever has not heard it by now need not know
        self._enter("draining")
        await self._peer.discovery.withdraw(self._advert())
        await worker.drain(DRAIN_S_MAX)
        tasks.cancel_scope.cancel()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._on_phase(phase, self.span)

    def _advert(self) -> Advert:
        worker = self._peer.worker
        state: Literal["joining", "serving", "draining"] = "joining"
        if self.phase in ("serving", "draining"):
            state = "serving" if self.phase == "serving" else "draining"
        return Advert(
            peer=self._peer.transport.peer,
            addresses=(),
            model=self._serving.model,
            layers=self._serving.layers,
            state=state,
            span=self.span,
            span_max=self._serving.span_max,
            sequence=0,
            expires_at_s=0.0,
            step_ms=self._step_ms,
            sessions_free=0 if worker is None else worker.sessions_free,
            model_name=self._serving.model_name,
            agent=f"p2pgrid/{__version__}",
        )

    async def _settle_and_build(self, tasks: trio.Nursery) -> Worker:
        """Choose, build, and look again: while building, others may have chosen the same layers."""
        self._enter("joining")
        if self._serving.span is None:
            self.span = await self._choose_span()
        while True:
            assert self.span is not None
            await self._peer.discovery.publish(self._advert)
            self._enter("building")
            stage = self._stage = await self._make_stage(self.span)
            better = self.span if self._serving.span is not None else await self._look_again(self.span)
            if better == self.span:
                break
            log.info("another node took the same layers first", layers=str(self.span), instead=str(better))
            stage.close()
            self.span = better
        self._enter("testing")
        self._step_ms = await prove_stage(stage, self._executor)
        transport = self._peer.transport
        worker = Worker(
            self._serving.model, stage, self._executor, self._peer.links, transport.peer, tracer=self._peer.tracer
        )
        await tasks.start(worker.run)
        self._peer.worker = worker
        return worker

    async def _choose_span(self) -> Span:
        discovery, serving = self._peer.discovery, self._serving
        await discovery.publish(self._advert)
        heard: set[PeerId] = set()
        quiet_since = trio.current_time()

        def nothing_new() -> bool:
            nonlocal quiet_since
            now_heard = {a.peer for a in self._peer.view.adverts(serving.model)}
            if not now_heard <= heard:
                heard.update(now_heard)
                quiet_since = trio.current_time()
            return trio.current_time() - quiet_since >= JOIN_QUIET_S

        await discovery.wait_until(serving.model, nothing_new, JOIN_S_MAX)
        others = self._peer.view.adverts(serving.model, "joining", "serving")
        taken = [a.span for a in others if a.span is not None]
        joiners = {a.peer: a.span_max for a in others if a.span is None}
        joiners[self._peer.transport.peer] = serving.span_max
        return plan_joins(serving.layers, taken, joiners)[self._peer.transport.peer]

    async def _look_again(self, current: Span) -> Span:
        await self._peer.discovery.refresh(self._serving.model)
        view, serving = self._peer.view, self._serving
        return settle(
            serving.layers,
            serving.span_max,
            self._peer.transport.peer,
            current,
            [a.span for a in view.adverts(serving.model, "serving") if a.span is not None],
            {a.peer: a.span for a in view.adverts(serving.model, "joining") if a.span is not None},
        )
