"""Measure the conditioner itself, so that a report can say what its links were really like."""

import random
from statistics import median

import msgspec
import trio

from p2pgrid.bench.conditioner import HOST, open_conditioner
from p2pgrid.bench.profiles import Profile

PING_S_MAX = 0.9
PINGS_MAX = 50
FLOW_S = 0.4
FLOW_BYTES_MIN = 64 * 1024
FLOW_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 256 * 1024


async def verify(profile: Profile) -> tuple[float, float]:
    """Round trip in seconds and rate in bytes/s of a link of `profile`, against a plain echo server behind it.

    The rate is that of its slower direction. Nothing is lost on purpose meanwhile. Takes one to two seconds.
    """
    sound = msgspec.structs.replace(profile, loss=0.0)
    async with trio.open_nursery() as tasks:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        tasks.start_soon(trio.serve_listeners, _echo, [listener])
        port = listener.socket.getsockname()[1]
        async with (
            open_conditioner(sound, port, random.Random(0)) as conditioner,
            await trio.open_tcp_stream(HOST, conditioner.port) as stream,
        ):
            measured = await _rtt_s(stream, profile), await _bytes_s(stream, profile)
        tasks.cancel_scope.cancel()
    return measured


async def _echo(stream: trio.SocketStream) -> None:
    try:
        while data := await stream.receive_some(READ_BYTES):
            await stream.send_all(data)
    except trio.BrokenResourceError:
        return


async def _rtt_s(stream: trio.SocketStream, profile: Profile) -> float:
    await _ping_s(stream)  # the first one pays for the connection
    pings = max(5, min(PINGS_MAX, int(PING_S_MAX / max(profile.rtt_s, 1e-3))))
    return median([await _ping_s(stream) for _ in range(pings)])


async def _ping_s(stream: trio.SocketStream) -> float:
    started_s = trio.current_time()
    await stream.send_all(b"?")
    await stream.receive_some(1)
    return trio.current_time() - started_s


async def _bytes_s(stream: trio.SocketStream, profile: Profile) -> float:
    slower = min(profile.up_bytes_s, profile.down_bytes_s)
    nbytes = int(min(max(slower * FLOW_S, FLOW_BYTES_MIN), FLOW_BYTES_MAX))
    async with trio.open_nursery() as tasks:
        tasks.start_soon(stream.send_all, bytes(nbytes))
        first = len(await stream.receive_some(READ_BYTES))
        first_s = trio.current_time()
        received = first
        while received < nbytes:
            received += len(await stream.receive_some(READ_BYTES))
        took_s = trio.current_time() - first_s
    return (nbytes - first) / took_s
