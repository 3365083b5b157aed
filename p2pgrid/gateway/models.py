"""The models that a gateway answers with: those that it was told to look for, as the swarm serves them."""

from collections.abc import Awaitable, Callable, Mapping

import trio

from p2pgrid.engine.stage import Executor
from p2pgrid.gateway.faults import ApiError
from p2pgrid.ids import ModelId
from p2pgrid.node.client import ModelDescription
from p2pgrid.node.peer import Peer
from p2pgrid.node.request import Asker
from p2pgrid.node.survey import ModelSurvey, survey_of
from p2pgrid.settings import StageSettings

Describe = Callable[[ModelId], Awaitable[ModelDescription]]
"""Gives what a client must know of a model. Raises NoRoute, PeerUnavailable, LocalFault."""


class Models:
    """`names` are the models to look for. From its making on, `peer` keeps its view of them fresh."""

    def __init__(
        self, peer: Peer, names: Mapping[ModelId, str], describe: Describe, lane: Executor | None = None
    ) -> None:
        """JSON schemas are compiled in `lane`; None = one for each model."""
        self._peer = peer
        self.names = dict(names)
        self._describe = describe
        self._lane = lane
        self._askers: dict[ModelId, Asker] = {}
        self._describing = trio.Lock()
        self._seen_at_s: dict[ModelId, float] = {}
        peer.discovery.interests.update(names)

    def surveys(self) -> list[ModelSurvey]:
        """Those models of which any node is known, in order of their names."""
        found = [survey_of(self._peer, model, name) for model, name in self.names.items()]
        return sorted((survey for survey in found if survey.adverts), key=lambda survey: survey.name)

    def seen_at_s(self, model: ModelId) -> float:
        """Unix time at which this was first asked for."""
        return self._seen_at_s.setdefault(model, self._peer.discovery.now_s())

    def find(self, name: str) -> tuple[ModelId, str]:
        """The id and name of the model that `name`, one of the two, stands for. Raises ApiError 404."""
        for model, known in self.names.items():
            if name in (known, model):
                return model, known
        raise self.unknown(name)

    def unknown(self, name: str) -> ApiError:
        served = ", ".join(survey.name for survey in self.surveys()) or "none just now"
        message = f"the model {name!r} is not served here; served are: {served}"
        return ApiError(404, message, param="model", code="model_not_found")

    async def asker(self, model: ModelId) -> Asker:
        """What turns requests into answers of that model; its description is fetched once."""
        async with self._describing:
            if model not in self._askers:
                description = await self._describe(model)
                self._askers[model] = Asker(description, StageSettings(), self._peer.settings, self._lane)
            return self._askers[model]
