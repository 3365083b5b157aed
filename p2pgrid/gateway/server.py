"""HTTP on sockets of our own: hypercorn's connections, each on a leash.

hypercorn's own `serve` shields every write from cancellation, so that one reader who takes nothing keeps the process
from ending. Here a connection is closed when it has not taken a byte for a while, and all are when the gateway ends.
"""

from collections.abc import Sequence
from typing import Any, cast

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

from p2pgrid.errors import LocalFault
from p2pgrid.gateway.limits import GatewayLimits

log = structlog.get_logger()

BACKLOG = 128


class _Connection:
    """A socket as hypercorn wants it, whose writes end: when none of it was taken for `stall_s_max`, or by `abort`."""

    def __init__(self, stream: trio.SocketStream, stall_s_max: float) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._stall_s_max = stall_s_max

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            with trio.move_on_after(self._stall_s_max) as waited:
                view = view[await self._send_some(view) :]
            if waited.cancelled_caught:
                self.abort()
                raise trio.BrokenResourceError("the reader takes nothing")

    async def _send_some(self, view: memoryview) -> int:
        try:
            return await self.socket.send(view)
        except OSError as error:
            raise trio.BrokenResourceError("the reader is gone") from error

    async def receive_some(self, most: int) -> bytes:
        return bytes(await self._stream.receive_some(most))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abort(self) -> None:
        """Close at once; whoever reads or writes is told."""
        self.socket.close()


async def open_listeners(host: str, port: int) -> tuple[Sequence[trio.SocketListener], str]:
    """Listeners on `host`, and their URL. Port 0 = any free one. Raises LocalFault."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror or str(error)
        raise LocalFault(f"cannot listen on {host}:{port}: {why}; choose another address with --listen") from error
    bound = listeners[0].socket.getsockname()[1]
    return listeners, f"http://{f'[{host}]' if ':' in host else host}:{bound}"


async def serve_http(app: ASGIApp, listeners: Sequence[trio.SocketListener], limits: GatewayLimits) -> None:
    """Answer requests until cancelled; then every connection is closed at once. Closes the listeners."""
    config = Config()
    config.errorlog = config.accesslog = None  # what may be logged is logged by us
    config.h11_max_incomplete_size = limits.header_bytes_max
    config.keep_alive_timeout = limits.idle_s_max
    config.include_server_header = False
    context = WorkerContext(None)
    wrapped = ASGIWrapper(cast(ASGIFramework, app))
    connections: set[_Connection] = set()

    async def handle(stream: trio.SocketStream) -> None:
        connection = _Connection(stream, limits.stall_s_max)
        if len(connections) >= limits.connections_max:
            connection.abort()
            return
        connections.add(connection)
        server = TCPServer(wrapped, config, context, ConnectionState({}), cast(Any, connection))
        try:
            await server.run()
        except Exception as error:  # noqa: BLE001 - owns the connection's failure: no client may hurt another one
            log.warning("a connection failed", kind=type(error).__name__)
        finally:
            connections.discard(connection)
            connection.abort()

    async def close_at_the_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            for connection in connections:
                connection.abort()

    async with trio.open_nursery() as tasks:
        tasks.start_soon(close_at_the_end)
        await trio.serve_listeners(handle, list(listeners), handler_nursery=tasks)
