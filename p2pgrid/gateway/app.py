"""The gateway's application: its routes put together, and what becomes of errors.

Each module of routes has a function `routes(gateway)`; what it raises as `ApiError` or as one of our own
errors becomes an error document here.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from p2pgrid.errors import P2pgridError
from p2pgrid.gateway import chat, events, health, page
from p2pgrid.gateway.faults import ApiError, on_api_error, on_defect, on_http_error, on_own_error
from p2pgrid.gateway.gateway import Gateway


def make_app(gateway: Gateway, stream: events.Events) -> Starlette:
    """An ASGI application for `gateway`, to be run on trio; `stream` is what its page listens to."""
    return Starlette(
        routes=[*chat.routes(gateway), *health.routes(gateway), *events.routes(gateway, stream), *page.routes()],
        exception_handlers={
            ApiError: on_api_error,
            P2pgridError: on_own_error,
            HTTPException: on_http_error,
            Exception: on_defect,
        },
    )
