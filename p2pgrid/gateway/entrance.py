"""What every request passes before its route: the host that it names, and a count of what became of it."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pgrid.gateway.access import is_loopback
from p2pgrid.gateway.faults import ApiError, error_response
from p2pgrid.gateway.gateway import Gateway


class Entrance:
    """An ASGI application in front of another one."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._gateway.metrics.replied(scope["path"], message["status"])
            await send(message)

        if self._is_misled(Headers(scope=scope).get("host", "")):
            message = "this gateway needs no key, so it answers only requests to localhost or a loopback address"
            refusal = ApiError(403, message, type="permission_error", code="wrong_host")
            await error_response(refusal)(scope, receive, watched)
            return
        await self._app(scope, receive, watched)

    def _is_misled(self, host: str) -> bool:
        """Whether a browser may have been told by a stranger's DNS that a name of theirs is this machine."""
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return not self._gateway.access.needs_key and bool(name) and not is_loopback(name)
