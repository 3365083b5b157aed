"""Connections on a leash: a reader who takes nothing, a header without an end, a defect, and the end of it all."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.gateway.life import parse_address
from p2pgrid.gateway.limits import GatewayLimits
from p2pgrid.gateway.server import open_listeners, serve_http

LIMITS = GatewayLimits(idle_s_max=0.3, header_bytes_max=2000, connections_max=3)
PIECE = b"x" * 65_536


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/endless` never ends, `/broken` raises, all else says who was asked for."""
    if scope["path"] == "/broken":
        raise RuntimeError("a defect")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": False})


class Clients:
    """Of the server at `port`; they hang up when it is over."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self.port = port
        self._stack = stack

    async def connect(self, path: str | None = None) -> trio.SocketStream:
        stream = await self._stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", self.port))
        if path is not None:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return stream

    async def reply(self, path: str) -> bytes:
        """The first part of what comes."""
        return bytes(await (await self.connect(path)).receive_some(65_536))


@asynccontextmanager
async def server(limits: GatewayLimits = LIMITS) -> AsyncIterator[Clients]:
    """The context ends it, and must not wait for anybody."""
    listeners, url = await open_listeners("127.0.0.1", 0)
    with trio.fail_after(30):
        async with AsyncExitStack() as stack, trio.open_nursery() as tasks:
            tasks.start_soon(serve_http, app, listeners, limits)
            yield Clients(int(url.rpartition(":")[2]), stack)
            tasks.cancel_scope.cancel()


async def closed(stream: trio.SocketStream) -> bool:
    """Whether the other side ends it; whatever comes before that is thrown away."""
    try:
        while await stream.receive_some(65_536):
            pass
    except trio.BrokenResourceError:
        pass
    return True


async def test_a_reader_who_takes_nothing_keeps_nobody_waiting_and_no_end_from_coming() -> None:
    async with server() as here:
        await here.connect("/endless")
        assert b"200" in await here.reply("/other")


async def test_a_reader_who_takes_nothing_for_too_long_is_cut_off() -> None:
    async with server(GatewayLimits(stall_s_max=0.1)) as here:
        stalled = await here.connect("/endless")
        await trio.sleep(0.5)
        assert await closed(stalled)


async def test_a_request_that_is_never_complete_is_given_up() -> None:
    async with server() as here:
        silent, slow = await here.connect(), await here.connect()
        await slow.send_all(b"GET / HTTP/1.1\r\nHost: loc")
        assert await closed(silent)
        assert await closed(slow)


async def test_a_header_without_an_end_is_refused() -> None:
    async with server() as here:
        stream = await here.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\nA: " + b"x" * 4000)
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 4")
        assert await closed(stream)


async def test_no_more_connections_are_held_than_there_is_room_for() -> None:
    async with server() as here:
        for _ in range(LIMITS.connections_max):
            await here.reply("/endless")
        assert await closed(await here.connect("/one-more"))


async def test_a_defect_ends_one_connection() -> None:
    async with server() as here:
        assert b"500" in await here.reply("/broken")
        assert b"200" in await here.reply("/well")


async def test_a_port_in_use_is_a_fault_of_this_machine() -> None:
    async with server() as here:
        with pytest.raises(LocalFault, match=f"cannot listen on 127.0.0.1:{here.port}: .*choose another"):
            await open_listeners("127.0.0.1", here.port)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), (":80", ("127.0.0.1", 80))],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, "--listen") == address


@pytest.mark.parametrize("text", ["", "8080", "host", "host:", "host:http", "::1:80", "host:65536", "host:-1"])
def test_what_is_no_address_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput, match=r"--listen .*: write HOST:PORT"):
        parse_address(text, "--listen")
