"""A gateway from its first listener to its last word."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from p2pgrid.errors import BadInput
from p2pgrid.gateway.app import make_app
from p2pgrid.gateway.events import Events
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.server import open_listeners, serve_http


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Host and port from `127.0.0.1:8080`, `[::1]:8080` or `:8080`, which is on loopback. Raises BadInput."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or int(port) > 65_535 or (":" in host and not bracketed):
        raise BadInput(f"{option} {text}: write HOST:PORT, like 127.0.0.1:8080 or [::1]:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


@asynccontextmanager
async def open_gateway(gateway: Gateway, host: str, port: int) -> AsyncIterator[str]:
    """Answer at the URL that this gives until the context ends; what runs then is told so. Raises LocalFault."""
    listeners, url = await open_listeners(host, port)
    async with trio.open_nursery() as tasks:
        events = Events(gateway)
        tasks.start_soon(events.run)
        tasks.start_soon(serve_http, make_app(gateway, events), listeners, gateway.limits)
        try:
            yield url
        finally:
            await gateway.stop()
            tasks.cancel_scope.cancel()
