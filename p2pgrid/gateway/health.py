"""`/healthz`, `/readyz` or `/health`, `/v1/models`, `/metrics`: whether there is anybody to ask, and how it goes."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pgrid.gateway.documents import Model, ModelList
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.metrics import CONTENT_TYPE
from p2pgrid.node.survey import ModelSurvey


class Alive(msgspec.Struct, frozen=True):
    """The answer of `GET /healthz`: the process runs and answers."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True):
    """The answer of `GET /readyz`."""

    status: Literal["ready", "unavailable"]
    """`ready` = at least one model can be used: its layers are all served."""
    models: list[Model]


def routes(gateway: Gateway) -> list[Route]:
    async def healthz(request: Request) -> Response:
        return _json(Alive())

    async def readyz(request: Request) -> Response:
        surveys = gateway.models.surveys()
        usable = any(survey.usable for survey in surveys) and not gateway.stopping.is_set()
        document = Ready("ready" if usable else "unavailable", [model_of(survey) for survey in surveys])
        return _json(document, 200 if usable else 503)

    async def metrics(request: Request) -> Response:
        gateway.access.admit(request, "admin")
        return Response(gateway.metrics.page(), media_type=CONTENT_TYPE)

    async def list_models(request: Request) -> Response:
        gateway.access.admit(request, "models")
        return _json(ModelList([model_of(survey) for survey in gateway.models.surveys()]))

    async def one_model(request: Request) -> Response:
        gateway.access.admit(request, "models")
        model, name = gateway.models.find(request.path_params["name"])
        for survey in gateway.models.surveys():
            if survey.id == model:
                return _json(model_of(survey))
        raise gateway.models.unknown(name)

    def model_of(survey: ModelSurvey) -> Model:
        seen_at_s = int(gateway.models.seen_at_s(survey.id))
        return Model(survey.name, seen_at_s, survey.id, survey.layers, survey.health.state, list(survey.health.reasons))

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/health", readyz),
        Route("/metrics", metrics),
        Route("/v1/models", list_models),
        Route("/v1/models/{name}", one_model),
    ]


def _json(document: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
