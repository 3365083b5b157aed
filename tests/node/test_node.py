"""The life of a node, watched by another peer."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import LocalFault, P2pgridError
from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import open_session, wait_for_route
from p2pgrid.node.node import Phase
from p2pgrid.node.peer import Peer
from p2pgrid.services.pipeline import Terms
from p2pgrid.sim.plan import Plan
from p2pgrid.sim.world import simulate
from p2pgrid.wire.tensors import Floats, Ints
from tests.swarm_kit import (
    LAYERS,
    MODEL,
    SEEDED,
    WHOLE,
    CountedStage,
    Life,
    alone,
    answer_of,
    generation,
    joined,
    living,
    node_of,
    serving_advert,
)


class Watcher:
    """Notes every state in which any node is advertised, and when."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.seen: list[tuple[float, str]] = []

    @property
    def states(self) -> list[str]:
        return [state for _, state in self.seen]

    async def watch(self) -> None:
        while True:
            await self.peer.discovery.refresh(MODEL)
            for advert in self.peer.view.adverts(MODEL):
                if not self.seen or self.states[-1] != advert.state:
                    self.seen.append((trio.current_time(), advert.state))
            await trio.sleep(0.02)


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[MemoryNetwork, Watcher]]:
    network = MemoryNetwork(random.Random(1))
    async with joined(network, 900) as peer, trio.open_nursery() as tasks:
        # It says something of itself too, because only those that are known are told of changes.
        await peer.discovery.publish(lambda: serving_advert(peer.transport.peer, None, state="draining"))
        watcher = Watcher(peer)
        tasks.start_soon(watcher.watch)
        yield network, watcher
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("span", [None, Span(2, 6)], ids=["chosen", "given"])
async def test_a_node_lives_its_phases_in_order(span: Span | None, autojump_clock: trio.abc.Clock) -> None:
    async with watched() as (network, watcher), living(network, 1, span) as life:
        await life.reached("serving")
        await trio.sleep(1)
        life.stop.set()
        await life.ended.wait()
        await trio.sleep(0.1)
        assert life.names == ["joining", "building", "testing", "serving", "draining", "left"]
        assert {held for phase, held in life.phases if phase != "joining"} == {span or WHOLE}
        assert watcher.states == ["joining", "serving", "draining"]
        said = life.peer.discovery.own_advert()
        assert said is not None
        assert said[0].state == "draining"


async def test_a_node_is_advertised_as_serving_only_once_it_can_answer(autojump_clock: trio.abc.Clock) -> None:
    async with watched() as (network, watcher), living(network, 1, WHOLE) as life:
        await life.reached("testing")
        assert "serving" not in watcher.states
        await life.reached("serving")
        await trio.sleep(0.1)
        assert watcher.states == ["joining", "serving"]
        advert = watcher.peer.view.adverts(MODEL)[0]
        assert (advert.span, advert.sessions_free, advert.layers) == (WHOLE, 4, LAYERS)
        assert advert.step_ms == pytest.approx(1.0)
        async with open_session(watcher.peer, MODEL, LAYERS, Terms(SEEDED)) as session:
            assert (await answer_of(session, generation())).token_ids == await alone(SEEDED)


@pytest.mark.parametrize("phase", ["joining", "building", "testing"])
async def test_a_node_told_to_stop_before_it_serves_leaves_at_once_and_never_served(
    phase: Phase, autojump_clock: trio.abc.Clock
) -> None:
    async with watched() as (network, watcher), joined(network, 1) as peer:
        life = Life(peer)
        node = node_of(life, None, build_s=2.0, executor=InlineExecutor(0.05))
        async with trio.open_nursery() as tasks:
            tasks.start_soon(node.run, life.stop)
            await life.reached(phase)
            await trio.sleep(0.02)
            stopped_s = trio.current_time()
            life.stop.set()
        assert trio.current_time() - stopped_s < 0.2
        assert life.names[-2:] == [phase, "left"]
        await trio.sleep(5)
        assert "serving" not in watcher.states
        assert [stage.closed > 0 for stage in life.stages] == [True] * len(life.stages)


class _NotFinite(CountedStage):
    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        result = super().step(row, position, tokens, hidden, logits)
        result[0, 0] = float("nan")
        return result


def _cannot_be_built(span: Span) -> CountedStage:
    raise LocalFault(f"no weights for layers {span}")


@pytest.mark.parametrize(
    ("make", "why"), [(_NotFinite, "not finite"), (_cannot_be_built, "no weights")], ids=["test fails", "build fails"]
)
async def test_a_stage_that_does_not_work_ends_the_node_and_was_never_advertised(
    make: Callable[[Span], CountedStage], why: str, autojump_clock: trio.abc.Clock
) -> None:
    async with watched() as (network, watcher), joined(network, 1) as peer:
        life = Life(peer)
        with pytest.RaisesGroup(pytest.RaisesExc(LocalFault, match=why), flatten_subgroups=True):
            await node_of(life, WHOLE, make=make).run(life.stop)
        await trio.sleep(5)
        assert watcher.states in ([], ["joining"])
        assert "serving" not in life.names
        assert [stage.closed > 0 for stage in life.stages] == [True] * len(life.stages)
        assert all(stage.released for stage in life.stages)


async def test_stopping_withdraws_the_advert_before_sessions_end_and_takes_under_two_seconds(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with watched() as (network, watcher), living(network, 1, WHOLE, cost_s=0.1) as life:
        await life.reached("serving")
        await trio.sleep(0.1)
        seen: list[int] = []
        stopped_s = ended_s = 0.0

        def bytes_of(token: int) -> bytes:
            nonlocal stopped_s
            seen.append(token)
            if len(seen) == 3:
                stopped_s = trio.current_time()
                life.stop.set()
            return b""

        route = await wait_for_route(watcher.peer, MODEL, LAYERS)
        try:
            async with watcher.peer.pipeline.open(MODEL, route, Terms(SEEDED)) as session:
                await answer_of(session, generation(max_tokens=40), bytes_of)
        except P2pgridError:
            ended_s = trio.current_time()
        await life.ended.wait()
        left_s = trio.current_time()
        withdrawn_s = next(at_s for at_s, state in watcher.seen if state == "draining")
        assert left_s - stopped_s < 2.0
        assert withdrawn_s < ended_s
        assert len(seen) > 3, "sessions may go on for a moment"
        assert seen == (await alone(SEEDED, max_tokens=40))[: len(seen)]
        assert len(life.stages[0].released) == life.stages[0].tested + 1  # after its test, and after the session
        assert life.stages[0].closed == 1


async def test_a_node_told_to_stop_while_it_tells_of_itself_does_not_wait_for_silent_peers(
    autojump_clock: trio.abc.Clock,
) -> None:
    network = MemoryNetwork(random.Random(1))
    async with joined(network, 2) as silent, living(network, 1, WHOLE) as life:
        await silent.discovery.publish(lambda: serving_advert(silent.transport.peer))
        await life.reached("testing")
        network.freeze(silent.transport.peer, True)
        await life.reached("serving")
        stopped_s = trio.current_time()
        life.stop.set()
        await life.ended.wait()
        assert trio.current_time() - stopped_s < 2.0


async def test_nodes_that_come_one_after_another_fill_the_gaps(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with (
        living(network, 1, span_max=4) as one,
        living(network, 2, Span(4, 7)) as two,
    ):
        await one.reached("serving")
        await two.reached("serving")
        async with living(network, 3, span_max=5) as three:
            await three.reached("serving")
            assert three.phases[-1] == ("serving", Span(7, 10))


@pytest.mark.parametrize("seed", range(24))
def test_nodes_that_join_at_once_cover_the_model_when_they_just_can(seed: int) -> None:
    nodes, layers = 1 + seed % 6, 12
    plan = Plan(nodes=nodes, layers=layers, span_max=-(-layers // nodes), requests=1, prompt_tokens=4, max_tokens=2)
    report = simulate(seed, plan)
    spans = [span for span in report.spans if span is not None]
    replay = f"replay: simulate({seed}, {plan})"
    assert len(spans) == nodes, replay
    assert missing_layers(spans, layers) == [], replay
    assert len(set(spans)) == -(-layers // len(max(spans, key=len))), replay
    assert report.outcomes[0].error is None, replay
