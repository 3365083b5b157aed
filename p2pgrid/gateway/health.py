"""`/healthz`, `/readyz` and `/v1/models`: whether there is anybody to ask."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.models import Offer
from p2pgrid.gateway.schema import Model, ModelList


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
        models = [_model(offer) for offer in gateway.models.offers()]
        usable = any(model.health != "unavailable" for model in models) and not gateway.stopping.is_set()
        return _json(Ready("ready" if usable else "unavailable", models), 200 if usable else 503)

    async def list_models(request: Request) -> Response:
        return _json(ModelList([_model(offer) for offer in gateway.models.offers()]))

    async def one_model(request: Request) -> Response:
        model, name = gateway.models.find(request.path_params["name"])
        for offer in gateway.models.offers():
            if offer.id == model:
                return _json(_model(offer))
        raise gateway.models.unknown(name)

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/v1/models", list_models),
        Route("/v1/models/{name}", one_model),
    ]


def _model(offer: Offer) -> Model:
    health = offer.health
    return Model(offer.name, int(offer.seen_at_s), offer.id, offer.layers, health.state, list(health.reasons))


def _json(document: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")
