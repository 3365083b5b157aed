"""`/openapi.json`: the API for programs, made of the structs that requests are read into and answers written from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import p2pgrid
from p2pgrid.gateway.documents import Chat, ChatChunk, Completion, Model, ModelList
from p2pgrid.gateway.faults import ErrorDocument
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.health import Alive, Ready
from p2pgrid.gateway.keys import Scope
from p2pgrid.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"

_REFUSED = {
    "400": "The request is wrong; `param` says where.",
    "401": "No good API key came.",
    "403": "The key is not good for this, or the host is not this machine.",
    "404": "No such model, or no such path.",
    "405": "Not this method.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is not JSON.",
    "429": "Too much at once; come again after `Retry-After` seconds.",
    "500": "A defect of the gateway.",
    "503": "The swarm cannot answer: the message names missing layers, or says what failed.",
    "504": "The answer took too long.",
}
_ALWAYS = ("400", "403", "405", "500")
_KEYED = ("401", "429")
_ASKED = (*_KEYED, "404", "408", "413", "415", "503", "504")

_STRUCTS: tuple[Any, ...] = (
    *(Alive, Chat, ChatChunk, ChatRequest, Completion, CompletionRequest, EmbeddingRequest),
    *(ErrorDocument, Model, ModelList, Ready),
)
_CHUNKS = {"type": "string", "description": "`ChatChunk` after `ChatChunk`, as JSON in server-sent events."}
_PIECES = {"type": "string", "description": "`Completion` after `Completion`, as JSON in server-sent events."}
_FIGURES = {"type": "string"}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


@dataclass(frozen=True)
class Operation:
    """What can be done at a path."""

    method: str
    path: str
    name: str
    summary: str
    content: Mapping[str, Any]
    """By media type, a struct or a schema: what comes when all is well."""
    refusals: tuple[str, ...] = ()
    """Statuses besides those that always may come."""
    body: Any = None
    scope: Scope | None = None
    parameters: tuple[Any, ...] = ()
    otherwise: Mapping[str, Any] = field(default_factory=dict)
    """Structs that come with a status instead of an error document."""


OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "chat",
        "Go on with a conversation",
        {JSON: Chat, EVENTS: _CHUNKS},
        _ASKED,
        body=ChatRequest,
        scope="chat",
    ),
    Operation(
        "post",
        "/v1/completions",
        "complete",
        "Go on with texts",
        {JSON: Completion, EVENTS: _PIECES},
        _ASKED,
        body=CompletionRequest,
        scope="completions",
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "embed",
        "Refused: no model here has any",
        {},
        _ASKED,
        body=EmbeddingRequest,
        scope="completions",
    ),
    Operation("get", "/v1/models", "models", "What is served", {JSON: ModelList}, _KEYED, scope="models"),
    Operation(
        "get",
        "/v1/models/{name}",
        "model",
        "One model, by name or id",
        {JSON: Model},
        (*_KEYED, "404"),
        scope="models",
        parameters=(_NAME,),
    ),
    Operation("get", "/healthz", "healthz", "Whether the gateway runs", {JSON: Alive}),
    Operation("get", "/readyz", "readyz", "Whether any model can be used", {JSON: Ready}, otherwise={"503": Ready}),
    Operation("get", "/health", "health", "The same as `/readyz`", {JSON: Ready}, otherwise={"503": Ready}),
    Operation("get", "/metrics", "metrics", "Figures for Prometheus", {TEXT: _FIGURES}, _KEYED, scope="admin"),
)


def description() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas, components = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    refs = dict(zip(_STRUCTS, schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "p2pgrid",
            "version": p2pgrid.__version__,
            "description": "A peer-to-peer swarm behind OpenAI's protocol.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _described(operation: Operation, refs: Mapping[Any, Any]) -> dict[str, Any]:
    def reply(text: str, content: Mapping[str, Any]) -> dict[str, Any]:
        schemas = {kind: schema if isinstance(schema, dict) else refs[schema] for kind, schema in content.items()}
        return {"description": text, "content": {kind: {"schema": schema} for kind, schema in schemas.items()}}

    replies = {each: reply(_REFUSED[each], {JSON: ErrorDocument}) for each in (*_ALWAYS, *operation.refusals)}
    replies |= {status: reply("Not so.", {JSON: struct}) for status, struct in operation.otherwise.items()}
    if operation.content:
        replies["200"] = reply("Done.", operation.content)
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": list(operation.parameters),
        "responses": dict(sorted(replies.items())),
    }
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": refs[operation.body]}}}
    if operation.scope is not None:
        found["security"] = [{}, {"key": []}]
        found["description"] = f"With keys: one that is good for `{operation.scope}`."
    return found


def routes(gateway: Gateway) -> list[Route]:
    document = msgspec.json.encode(description())

    async def openapi(request: Request) -> Response:
        return Response(document, media_type=JSON)

    return [Route("/openapi.json", openapi, methods=["GET"])]
