"""The gateway's application: its routes put together, and what becomes of errors.

Each module of routes has a function `routes(gateway)`; what it raises as `ApiError` or as one of our own errors
becomes an error document here. A route that not everybody may use begins with `gateway.access.admit(request, scope)`.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from p2pgrid.errors import P2pgridError
from p2pgrid.gateway import chat, completions, embeddings, events, health, openapi, page
from p2pgrid.gateway.entrance import Entrance
from p2pgrid.gateway.faults import ApiError, on_api_error, on_defect, on_http_error, on_own_error
from p2pgrid.gateway.gateway import Gateway

PARTS = (chat, completions, embeddings, health, openapi)


def make_app(gateway: Gateway, stream: events.Events) -> ASGIApp:
    """An ASGI application for `gateway`, to be run on trio; `stream` is what its page listens to."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(gateway.cors),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
    )
    api = [route for part in PARTS for route in part.routes(gateway)]
    app = Starlette(
        routes=[*api, *events.routes(gateway, stream), *page.routes()],
        middleware=[cors] if gateway.cors else [],
        exception_handlers={
            ApiError: on_api_error,
            P2pgridError: on_own_error,
            HTTPException: on_http_error,
            Exception: on_defect,
        },
    )
    return Entrance(app, gateway)
