"""`POST /v1/embeddings`: no model here can, and clients are told so by name."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from p2pgrid.gateway.bodies import read_json
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.schema import EmbeddingRequest


def routes(gateway: Gateway) -> list[Route]:
    async def embed(request: Request) -> Response:
        gateway.access.admit(request, "completions")
        body = await read_json(request, EmbeddingRequest, gateway.limits)
        _, name = gateway.models.find(body.model)
        message = f"the model {name} generates text and has no embeddings"
        raise ApiError(404, message, param="model", code="no_embeddings")

    return [Route("/v1/embeddings", embed, methods=["POST"])]
