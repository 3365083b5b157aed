"""The description of the API is that of the API."""

import re

from starlette.routing import Route

from p2pgrid.gateway.app import PARTS
from p2pgrid.gateway.openapi import OPERATIONS, description
from tests.gateway.kit import door


async def test_every_route_is_described_and_nothing_else(autojump_clock: object) -> None:
    async with door(0) as here:
        routes = [route for part in PARTS for route in part.routes(here.gateway)]
        served = (await here.get("/openapi.json")).json
    assert served == description()
    known = {(method.lower(), route.path) for route in routes for method in methods_of(route) - {"HEAD"}}
    described = {(operation.method, operation.path) for operation in OPERATIONS}
    assert known - described == {("get", "/openapi.json")}
    assert described <= known


def methods_of(route: Route) -> set[str]:
    assert route.methods is not None
    return set(route.methods)


def test_every_schema_that_is_named_is_there() -> None:
    document = description()
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names <= set(document["components"]["schemas"])
    assert {"ChatRequest", "CompletionRequest", "ErrorDocument"} <= names


async def test_what_comes_has_a_status_that_is_described(autojump_clock: object) -> None:
    paths = description()["paths"]
    async with door() as here:
        replies = {
            "/v1/chat/completions": [await here.chat(max_tokens=2), await here.chat(model="other")],
            "/v1/completions": [await here.complete(max_tokens=2), await here.complete(n=0)],
        }
    for path, found in replies.items():
        described = paths[path]["post"]["responses"]
        for reply in found:
            content = described[str(reply.status)]["content"]
            assert reply.headers["content-type"] in content
