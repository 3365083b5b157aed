"""What listeners are told of a swarm: what is there, what changes, and how quickly. On a virtual clock."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from p2pgrid.core.recovery import Recovery
from p2pgrid.errors import NoRoute
from p2pgrid.gateway import events as events_module
from p2pgrid.gateway import watch as watch_module
from p2pgrid.gateway.access import Access
from p2pgrid.gateway.events import HEARTBEAT_S, Events, EventStream, routes
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.models import Models
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import ModelDescription
from p2pgrid.wire.messages import Hop
from tests.swarm_kit import MODEL, WHOLE, Life, cut, joined, living, wall


class Listener:
    """A client of the stream over ASGI, which takes what it is sent unless `ready` is a new event."""

    def __init__(self, gateway: Gateway, events: Events) -> None:
        self.events: list[tuple[str, Any]] = []
        self.comments = 0
        self.ended = trio.Event()
        self.ready = trio.Event()
        self.ready.set()
        self.gone = trio.Event()
        self._stream = EventStream(gateway, events)
        self._news = trio.Event()

    async def listen(self) -> None:
        async def receive() -> dict[str, Any]:
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await self.ready.wait()
            for line in message.get("body", b"").decode().split("\n\n"):
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, data = line.split("\n")
                    self.events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
            self._news.set()
            self._news = trio.Event()

        await self._stream({"type": "http"}, receive, send)
        self.ended.set()

    @property
    def state(self) -> dict[str, Any]:
        """The snapshot with all changes since, put together as the page does."""
        (first, state), *changes = self.events
        assert first == "snapshot"
        for name, change in changes:
            assert name == "change"
            for part, news in change.items():
                state[part] = news if part == "gateway" else _merged(state[part], news)
        return dict(state)

    async def sees(self, what: Any) -> None:
        """Wait until `what(state)` is true."""
        with trio.fail_after(60):
            while not self.events or not what(self.state):
                await self._news.wait()


def _merged(known: dict[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**known, **news}.items() if value is not None}


class Door:
    """A gateway to a toy swarm, and its events."""

    def __init__(self, network: MemoryNetwork, gateway: Gateway, events: Events, tasks: trio.Nursery) -> None:
        self.network = network
        self.gateway = gateway
        self.events = events
        self._tasks = tasks

    def listener(self) -> Listener:
        found = Listener(self.gateway, self.events)
        self._tasks.start_soon(found.listen)
        return found


async def _undescribed(model: ModelId) -> ModelDescription:
    raise NoRoute("the toy model is described by nobody")


@asynccontextmanager
async def a_door(network: MemoryNetwork) -> AsyncIterator[Door]:
    async with joined(network, 900) as peer, trio.open_nursery() as tasks:
        gateway = Gateway(peer, Models(peer, {MODEL: "toy"}, _undescribed), Access(wall))
        events = Events(gateway)
        tasks.start_soon(events.run)
        yield Door(network, gateway, events, tasks)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def a_swarm(parts: int) -> AsyncIterator[tuple[Door, list[Life]]]:
    """Nodes that serve each one part of the model, and a door to them."""
    network = MemoryNetwork(random.Random(7))
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span)) for number, span in enumerate(cut(parts))
        ]
        for life in lives:
            await life.reached("serving")
        yield await stack.enter_async_context(a_door(network)), lives


def shows(*lives: Life) -> Any:
    """Whether exactly these nodes are shown, all of them serving and measured from here."""
    peers = {life.peer.transport.peer for life in lives}

    def look(state: dict[str, Any]) -> bool:
        nodes = state["nodes"]
        return nodes.keys() == peers and all(n["state"] == "serving" and n["rtt_ms"] for n in nodes.values())

    return look


async def test_a_listener_is_told_what_there_is_and_then_what_changes(autojump_clock: trio.abc.Clock) -> None:
    async with a_swarm(3) as (door, lives):
        listener = door.listener()
        await listener.sees(shows(*lives))
        assert [name for name, _ in listener.events[:2]] == ["snapshot", "change"]
        spans = [node["span"] for node in listener.state["nodes"].values()]
        assert sorted(spans) == [[0, 3], [3, 6], [6, 10]]
        model = listener.state["models"][MODEL]
        assert (model["name"], model["layers"], model["missing"], model["nodes"]) == ("toy", 10, [], 3)
        assert listener.state["gateway"]["links"] == 3

        await trio.sleep(3)
        async with living(door.network, 5, WHOLE) as replica:
            await replica.reached("serving")
            began = trio.current_time()
            await listener.sees(shows(*lives, replica))
            assert trio.current_time() - began < watch_module.ASK_CALM_S + 1


@pytest.mark.parametrize(("hangs", "seen_s_max"), [(False, 0.3), (True, 2.0)])
async def test_a_node_that_dies_or_hangs_leaves_at_once(
    hangs: bool, seen_s_max: float, autojump_clock: trio.abc.Clock
) -> None:
    async with a_swarm(3) as (door, lives):
        listener = door.listener()
        await listener.sees(shows(*lives))
        await trio.sleep(5)
        lost = lives[1].peer.transport.peer
        if hangs:
            door.network.freeze(lost, True)
        else:
            door.network.kill(lost)
        began = trio.current_time()
        await listener.sees(lambda state: lost not in state["nodes"])
        assert trio.current_time() - began <= seen_s_max
        model = listener.state["models"][MODEL]
        assert (model["state"], model["missing"]) == ("unavailable", [[3, 6]])


class Carrier:
    """A session, as far as it is shown."""

    def __init__(self) -> None:
        self.route = (Hop(PeerId("12D3KooWAAAA"), WHOLE),)
        self.recoveries: tuple[Recovery, ...] = ()


async def test_an_answer_is_shown_by_its_figures_while_it_runs(autojump_clock: trio.abc.Clock) -> None:
    async with a_swarm(2) as (door, lives):
        listener = door.listener()
        await listener.sees(shows(*lives))
        carrier = Carrier()
        with door.gateway.activity.begin("chatcmpl-1", MODEL) as answer:
            answer.opened(carrier)
            for _ in range(3):
                answer.token()
            await listener.sees(lambda state: state["sessions"])
            carrier.recoveries = (Recovery(3, (PeerId("12D3KooWBBBB"),), 0.2),)
            answer.token()
            await listener.sees(lambda state: state["sessions"].get("1", {}).get("recoveries"))
            route = [{"peer": "12D3KooWAAAA", "span": [0, 10]}]
            shown = {"model": MODEL, "tokens": 4, "recoveries": 1, "route": route}
            assert listener.state["sessions"]["1"] == shown
        await listener.sees(lambda state: not state["sessions"] and state["gateway"]["answers"] == 1)
        assert listener.state["gateway"]["tokens"] == 4


async def test_a_slow_listener_holds_up_nobody_and_is_told_how_things_are_now(autojump_clock: trio.abc.Clock) -> None:
    async with a_swarm(3) as (door, lives):
        slow, quick = door.listener(), door.listener()
        await slow.sees(shows(*lives))
        slow.ready = trio.Event()
        await trio.sleep(1)
        told = len(slow.events)
        for life in lives[:2]:
            lost = life.peer.transport.peer
            door.network.kill(lost)
            await quick.sees(lambda state, lost=lost: lost not in state["nodes"])
            async with living(door.network, 5, WHOLE) as brief:
                await quick.sees(lambda state, brief=brief: brief.peer.transport.peer in state["nodes"])
                await brief.reached("serving")
            await trio.sleep(10)
        assert len(slow.events) == told
        slow.ready.set()
        await slow.sees(lambda state: state["nodes"].keys() == {lives[2].peer.transport.peer})
        assert len(slow.events) <= told + 2, "what it could not take, and one change from then to now"


async def test_a_listener_hears_a_heartbeat_when_nothing_is_new(autojump_clock: trio.abc.Clock) -> None:
    async with a_door(MemoryNetwork(random.Random(1))) as door:
        listener = door.listener()
        await trio.sleep(3.5 * HEARTBEAT_S)
        assert ([name for name, _ in listener.events], listener.comments) == (["snapshot"], 3)


async def test_streams_end_with_the_gateway(autojump_clock: trio.abc.Clock) -> None:
    async with a_swarm(2) as (door, lives):
        listener = door.listener()
        await listener.sees(shows(*lives))
        began = trio.current_time()
        await door.gateway.stop()
        assert listener.ended.is_set()
        assert trio.current_time() - began < 0.1


async def test_nobody_is_watched_while_nobody_looks(autojump_clock: trio.abc.Clock) -> None:
    async with a_swarm(2) as (door, lives):
        await trio.sleep(20)
        assert door.gateway.peer.links.peers() == []
        listener = door.listener()
        await listener.sees(shows(*lives))
        listener.gone.set()
        await listener.ended.wait()
        door.network.disconnect(door.gateway.peer.transport.peer)
        await trio.sleep(20)
        assert door.gateway.peer.links.peers() == []


async def test_links_are_held_to_so_many_nodes_only(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    monkeypatch.setattr(watch_module, "WATCHED_MAX", 2)
    async with a_swarm(4) as (door, _):
        listener = door.listener()
        await listener.sees(lambda state: len(state["nodes"]) == 4)
        await trio.sleep(30)
        assert len(door.gateway.peer.links.peers()) == 2


async def test_a_listener_too_many_is_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    monkeypatch.setattr(events_module, "LISTENERS_MAX", 1)
    async with a_door(MemoryNetwork(random.Random(1))) as door:
        door.listener()
        await trio.sleep(1)
        (route,) = routes(door.gateway, door.events)
        with pytest.raises(ApiError) as refusal:
            await route.endpoint(None)
        assert (refusal.value.status, refusal.value.headers) == (429, {"Retry-After": "5"})
