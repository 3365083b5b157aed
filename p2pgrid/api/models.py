"""Where answers come from: the models of a swarm, or of this process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import BadInput
from p2pgrid.ids import Span
from p2pgrid.node.answer import Answer, ScoredText, Show
from p2pgrid.node.client import ModelDescription, wait_for_route
from p2pgrid.node.peer import Peer
from p2pgrid.node.request import Asker, Request
from p2pgrid.node.survey import ModelSurvey, ask_around, examine
from p2pgrid.node.wiring import build_stage, describe_model, known_models, model_store
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.storage.models import ModelStore

Advance = Callable[[int, int], None]
"""Hears of progress: `(done, total)` steps."""


class Models(Protocol):
    """Answers and scores with models by name. All raise BadInput, and what the swarm or this machine lacks."""

    async def surveys(self) -> list[ModelSurvey]: ...

    async def answer(self, model: str, request: Request, show: Show) -> Answer: ...

    async def score(self, model: str, text: str, top: int) -> ScoredText: ...


class SwarmModels:
    """Those that nodes serve, as `peer` finds them."""

    def __init__(self, peer: Peer, store: ModelStore) -> None:
        self._peer = peer
        self._store = store
        self._known: dict[str, tuple[ModelDescription, Asker]] = {}

    async def describe(self, model: str) -> ModelDescription:
        """What a client must know of a model. Raises BadInput, NoRoute, PeerUnavailable, LocalFault."""
        return await describe_model(self._store, model, self._peer)

    async def surveys(self) -> list[ModelSurvey]:
        """Of every model that has a name here and a node in the swarm."""
        names = known_models(self._store)
        await ask_around(self._peer, sorted(names))
        found = [await examine(self._peer, model, name) for model, name in sorted(names.items())]
        return [one for one in found if one.adverts]

    async def answer(self, model: str, request: Request, show: Show) -> Answer:
        description, asker = await self._find(model)
        asker.check(request)
        await wait_for_route(self._peer, description.id, description.manifest.layers)
        return await asker.over_swarm(self._peer, request, show)

    async def score(self, model: str, text: str, top: int) -> ScoredText:
        description, asker = await self._find(model)
        await wait_for_route(self._peer, description.id, description.manifest.layers)
        return await asker.score_over_swarm(self._peer, text, top)

    async def _find(self, model: str) -> tuple[ModelDescription, Asker]:
        if model not in self._known:
            description = await self.describe(model)
            self._known[model] = description, Asker(description, StageSettings(), PipelineSettings())
        return self._known[model]


@asynccontextmanager
async def open_local_engine(
    store: ModelStore, model: str, advance: Advance | None = None
) -> AsyncIterator[tuple[Asker, Stage, Executor]]:
    """The whole model in this process. Raises BadInput, LocalFault."""
    description = await describe_model(store, model)
    settings = StageSettings(sessions_max=1)
    span = Span(0, description.manifest.layers)
    stage = await build_stage(store, description, span, settings, advance)
    try:
        yield Asker(description, settings, PipelineSettings()), stage, LaneExecutor()
    finally:
        stage.close()


class LocalModel:
    """One model in this process, which gives one answer at a time."""

    def __init__(self, model: str, asker: Asker, stage: Stage, executor: Executor) -> None:
        self._model = model
        self._asker = asker
        self._stage = stage
        self._executor = executor
        self._turn = trio.Lock()

    async def surveys(self) -> list[ModelSurvey]:
        raise BadInput("a model in this process has no swarm to look at: connect without local")

    async def answer(self, model: str, request: Request, show: Show) -> Answer:
        self._check(model)
        async with self._turn:
            return await self._asker.locally(self._stage, self._executor, request, show)

    async def score(self, model: str, text: str, top: int) -> ScoredText:
        self._check(model)
        async with self._turn:
            return await self._asker.score_locally(self._stage, self._executor, text, top)

    def _check(self, model: str) -> None:
        if model != self._model:
            raise BadInput(f"model {model!r} is not loaded: this process runs {self._model!r}")


@asynccontextmanager
async def open_local_model(model: str, advance: Advance | None = None) -> AsyncIterator[LocalModel]:
    """Raises BadInput when the model is not on this machine, LocalFault when it cannot be loaded."""
    async with open_local_engine(model_store(), model, advance) as (asker, stage, executor):
        yield LocalModel(model, asker, stage, executor)
