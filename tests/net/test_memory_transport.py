"""The network in memory: what the simulation may rely on."""

import random

import pytest
import trio
import trio.testing

from p2pgrid.errors import BadInput, PeerUnavailable
from p2pgrid.net.memory_stream import PIPE_BYTES_MAX
from p2pgrid.net.memory_transport import PROVIDER_RECORD_S, MemoryNetwork
from p2pgrid.net.transport import ByteStream
from p2pgrid.wire.messages import Contact
from tests.net.peers import identity

PROTOCOL = "/p2pgrid/echo-for-tests/1"


async def echo(stream: ByteStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def never_read(stream: ByteStream) -> None:
    await trio.sleep_forever()


async def test_bytes_take_the_latency_and_the_bandwidth(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1), latency_s=0.1, bandwidth_bytes_s=1000)
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        a.serve(PROTOCOL, echo)
        started = trio.current_time()
        stream = await b.open_stream(Contact(a.peer), PROTOCOL)
        assert trio.current_time() - started == pytest.approx(0.2)
        started = trio.current_time()
        await stream.send_all(bytes(500))
        assert await stream.receive_some() == bytes(500)
        assert trio.current_time() - started == pytest.approx(0.1 + 0.5 + 0.1 + 0.5)


async def test_a_writer_waits_for_a_reader(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        a.serve(PROTOCOL, never_read)
        stream = await b.open_stream(Contact(a.peer), PROTOCOL)
        written = 0
        with trio.move_on_after(60):
            while True:
                await stream.send_all(bytes(1024))
                written += 1024
        assert written == PIPE_BYTES_MAX


async def test_frozen_bytes_are_held_and_come_later(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        a.serve(PROTOCOL, echo)
        stream = await b.open_stream(Contact(a.peer), PROTOCOL)
        network.freeze(a.peer, True)
        await stream.send_all(b"x")
        with trio.move_on_after(100) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        network.freeze(a.peer, False)
        assert await stream.receive_some() == b"x"


async def test_the_dead_are_not_dialled_and_their_streams_break(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        a.serve(PROTOCOL, echo)
        stream = await b.open_stream(Contact(a.peer), PROTOCOL)
        network.kill(a.peer)
        with pytest.raises(PeerUnavailable):
            await stream.receive_some()
        with pytest.raises(PeerUnavailable):
            await stream.send_all(b"x")
        with pytest.raises(PeerUnavailable, match="nobody answers"):
            await b.open_stream(Contact(a.peer), PROTOCOL)
        with pytest.raises(PeerUnavailable, match="left the network"):
            await a.open_stream(Contact(b.peer), PROTOCOL)


async def test_the_table_forgets_the_dead_only_in_time(autojump_clock: trio.abc.Clock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with network.open(identity(1)) as a, network.open(identity(2)) as b:
        await a.announce("key")
        assert await b.find_providers("key") == [Contact(a.peer, a.addresses)]
        assert await a.find_providers("key") == []
        network.kill(a.peer)
        assert len(await b.find_providers("key")) == 1
        await trio.sleep(PROVIDER_RECORD_S)
        assert await b.find_providers("key") == []
        with pytest.raises(BadInput):
            await b.announce("k" * 51)


def test_the_same_seed_gives_the_same_times() -> None:
    async def main(seed: int) -> list[float]:
        network = MemoryNetwork(random.Random(seed), latency_s=0.01, jitter_s=0.1)
        async with network.open(identity(1)) as a, network.open(identity(2)) as b:
            a.serve(PROTOCOL, echo)
            stream = await b.open_stream(Contact(a.peer), PROTOCOL)
            times = []
            for _ in range(20):
                await stream.send_all(b"x")
                await stream.receive_some()
                times.append(trio.current_time())
            return times

    def run(seed: int) -> list[float]:
        return trio.run(main, seed, clock=trio.testing.MockClock(autojump_threshold=0))

    assert run(1) == run(1) != run(2)
