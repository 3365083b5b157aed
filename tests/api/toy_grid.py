"""A grid over a swarm of toy stages, with what is needed to see whether its answers gave everything back."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pgrid.api import blocking
from p2pgrid.api.grid import Grid, opened_grid
from p2pgrid.api.models import SwarmModels
from p2pgrid.errors import NoRoute
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.client import ModelDescription
from p2pgrid.storage.models import ModelStore
from tests.swarm_kit import MODEL, Life, cut, joined, living
from tests.toy_model import CONTEXT_MAX, DESCRIPTION


class ToyModels(SwarmModels):
    async def describe(self, model: str) -> ModelDescription:
        return DESCRIPTION


@dataclass
class ToySwarm:
    grid: Grid
    lives: list[Life]

    @property
    def rows_taken(self) -> int:
        """KV rows that are not free, on all nodes together."""
        return sum(life.peer.worker.sessions_open for life in self.lives if life.peer.worker is not None)

    async def all_given_back(self) -> None:
        with trio.fail_after(5):
            while self.rows_taken:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)


@asynccontextmanager
async def toy_swarm(*, cost_s: float = 0.001) -> AsyncIterator[ToySwarm]:
    """Two nodes, and a client of theirs; a step takes `cost_s`. In the end every row must be free, however it ends."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span, cost_s=cost_s, context_max=CONTEXT_MAX))
            for number, span in enumerate(cut(2))
        ]
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == 2, 6)
        models = ToyModels(client, ModelStore(Path("/nowhere")))
        try:
            async with opened_grid(models, "toy") as grid:
                yield ToySwarm(grid, lives)
        finally:
            with trio.CancelScope(shield=True):
                await ToySwarm(grid, lives).all_given_back()


def blocking_on_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on `connect_blocking` leads to a swarm of toys, but for `nowhere`."""

    @asynccontextmanager
    async def connect(bootstrap: Any, **options: Any) -> AsyncIterator[Grid]:
        if bootstrap == "nowhere":
            raise NoRoute("nobody is there")
        async with toy_swarm(cost_s=0.02) as swarm:
            yield swarm.grid

    monkeypatch.setattr(blocking, "connect", connect)
