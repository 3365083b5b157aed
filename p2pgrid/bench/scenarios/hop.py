"""What a link adds to a step beyond computing, by the size of its frame: half a round trip between two processes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median

import trio

from p2pgrid.bench.document import Limit
from p2pgrid.bench.echo import HOST, LENGTH, Whereabouts, open_echo, read_exactly
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.errors import LocalFault, PeerUnavailable
from p2pgrid.ids import PeerId, SessionId
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.net.links import Delivery, Links
from p2pgrid.settings import LinkSettings
from p2pgrid.storage.identity import ephemeral_identity
from p2pgrid.wire.messages import Contact, Step

FRAME_BYTES = (1024, 16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024)
ROUND_TRIPS_MIN = 15
SIZE_S_MIN = 0.3
QUICK_SIZE_S_MIN = 0.1
"""Each size goes for so long: over less than half a second in all, nobody could tell how busy the machine was."""
WARM_UP = 3
OVERHEAD_BYTES = 97
"""About what a step's frame has besides its hidden states."""
ROUND_TRIP_S_MAX = 10.0
SESSION = SessionId("5e" * 16)
DIRECT = "direct"
"""A link over a connection of its own."""
LIBP2P = "libp2p"
"""A link over a stream of the libp2p connection."""
PLAIN_TCP = "plain_tcp"

RoundTrip = Callable[[int], Awaitable[None]]
"""Send a frame of so many bytes there and wait until it is back."""


class _LinkTrips:
    """Round trips of steps over a link to the echo peer."""

    def __init__(self) -> None:
        self._back = trio.Event()
        self._lost = ""

    async def on_message(self, delivery: Delivery) -> None:
        delivery.release()
        self._back.set()

    def on_lost(self, peer: PeerId, reason: str) -> None:
        self._lost = reason
        self._back.set()

    async def over(self, links: Links, there: PeerId, nbytes: int) -> None:
        """Raises PeerUnavailable."""
        step = Step(SESSION, 0, 0, b"\0\0\0\0", hidden=bytes(max(0, nbytes - OVERHEAD_BYTES)))
        self._back = trio.Event()
        await links.send(there, step)
        with trio.move_on_after(ROUND_TRIP_S_MAX):
            await self._back.wait()
        if self._lost or not self._back.is_set():
            raise PeerUnavailable(f"the echo peer did not answer: {self._lost or 'no word'}", there)


@asynccontextmanager
async def open_link(there: Contact, *, direct: bool) -> AsyncIterator[RoundTrip]:
    """A link to the echo peer. Raises PeerUnavailable."""
    trips = _LinkTrips()
    async with (
        open_libp2p(ephemeral_identity(), [], [], dht_server=False, direct=direct) as transport,
        trio.open_nursery() as tasks,
    ):
        links = Links(transport, LinkSettings(), on_message=trips.on_message, on_lost=trips.on_lost)
        await tasks.start(links.run)
        await links.connect(there)

        async def go(nbytes: int) -> None:
            await trips.over(links, there.peer, nbytes)

        yield go
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_plain_tcp(port: int) -> AsyncIterator[RoundTrip]:
    """A bare connection to the echo peer, with a length before each frame."""
    async with await trio.open_tcp_stream(HOST, port) as stream:

        async def go(nbytes: int) -> None:
            try:
                await stream.send_all(LENGTH.pack(nbytes) + bytes(nbytes))
                await read_exactly(stream, LENGTH.size + nbytes)
            except trio.BrokenResourceError as error:
                raise LocalFault(f"the echo process has ended: {error}") from error

        yield go


async def one_way_s(go: RoundTrip, nbytes: int, at_least_s: float) -> float:
    """Half of the median round trip, after a few that do not count."""
    for _ in range(WARM_UP):
        await go(nbytes)
    taken_s: list[float] = []
    enough_at = trio.current_time() + at_least_s
    while len(taken_s) < ROUND_TRIPS_MIN or trio.current_time() < enough_at:
        started_s = trio.current_time()
        await go(nbytes)
        taken_s.append(trio.current_time() - started_s)
    return median(taken_s) / 2


async def run(bench: Bench) -> None:
    async with open_echo() as there:
        await _measure(bench, there)


async def _measure(bench: Bench, there: Whereabouts) -> None:
    at_least_s = QUICK_SIZE_S_MIN if bench.options.quick else SIZE_S_MIN
    pairs = bench.options.repeat
    kept: dict[tuple[str, str], dict[int, float]] = {}
    bench.compare(DIRECT, PLAIN_TCP)
    bench.compare(LIBP2P, PLAIN_TCP)
    async with (
        open_link(there.contact, direct=True) as direct,
        open_link(there.contact, direct=False) as muxed,
        open_plain_tcp(there.tcp_port) as plain,
    ):
        systems = ((DIRECT, direct), (LIBP2P, muxed), (PLAIN_TCP, plain))
        for pair in range(-1, pairs):
            for name, go in systems if pair % 2 == 0 else reversed(systems):
                await bench.sample(name, pair, _measurement(name, go, at_least_s, pair, kept))
            bench.progress(pair + 1, pairs)
    for name in (DIRECT, LIBP2P):
        for nbytes in FRAME_BYTES:
            metric = _metric(nbytes)
            best = median(kept[PLAIN_TCP, metric].values())
            ours = median(kept[name, metric].values())
            what = "the same bytes one way over plain TCP between the same two processes"
            bench.limit(Limit(metric, name, limit=best, unit="s", share=best / ours, what=what))
    bench.note(
        "hop_s is half of a round trip on loopback; a decode step is one frame of a few KB, a prefill step of many"
    )


def _metric(nbytes: int) -> str:
    return f"hop_s@{nbytes}"


def _measurement(
    name: str, go: RoundTrip, at_least_s: float, pair: int, kept: dict[tuple[str, str], dict[int, float]]
) -> Callable[[], Awaitable[dict[str, tuple[float, str]]]]:
    """All sizes, one after another. What a sample that is thrown out left in `kept` is overwritten by the next."""

    async def measure() -> dict[str, tuple[float, str]]:
        figures: dict[str, tuple[float, str]] = {}
        for nbytes in FRAME_BYTES:
            hop_s = await one_way_s(go, nbytes, at_least_s)
            figures[_metric(nbytes)] = (hop_s, "s")
            if pair >= 0:
                kept.setdefault((name, _metric(nbytes)), {})[pair] = hop_s
        return figures

    return measure


SCENARIO = Named("hop", "what a link adds to a step beyond computing, by the size of its frame", run)
