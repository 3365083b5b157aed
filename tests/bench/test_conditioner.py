"""Emulated links: a line's arithmetic without any clock, and real connections through a proxy in real time."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.bench.conditioner import HOST, PORTS_NOT_GIVEN_AWAY, Conditioner, free_ports, open_conditioner
from p2pgrid.bench.conditioner_check import verify
from p2pgrid.bench.line import Line
from p2pgrid.bench.profiles import MBIT, PROFILES, Profile, parse_profile
from p2pgrid.errors import BadInput

QUICK = Profile("quick", rtt_s=0.01, up_bytes_s=1000 * MBIT, down_bytes_s=1000 * MBIT)
sends = st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 0.1)), min_size=1, max_size=40)


# ── a line ───────────────────────────────────────────────────────────────────────────────────────────────


@given(sends=sends, rate=st.floats(1e3, 1e9), rtt_s=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_nothing_arrives_before_its_delay_or_above_the_rate(
    sends: list[tuple[int, float]], rate: float, rtt_s: float
) -> None:
    line = Line(Profile("p", rtt_s, rate, rate), rate, random.Random(0))
    now, busy_since, in_turn, last = 0.0, 0.0, 0, 0.0
    for nbytes, pause_s in sends:
        now += pause_s
        if last - line.one_way_s <= now:  # all before it has left: nothing is saved up for this
            busy_since, in_turn = now, 0
        in_turn += nbytes
        arrival = line.arrival(nbytes, now)
        assert arrival == pytest.approx(busy_since + in_turn / rate + rtt_s / 2, rel=1e-6, abs=1e-6)
        assert arrival >= last
        last = arrival


def test_jitter_goes_both_ways_and_stays_within_its_bounds() -> None:
    profile = Profile("p", 0.1, 1e12, 1e12, jitter_s=0.02)
    line = Line(profile, 1e12, random.Random(3))
    delays = [line.arrival(1, float(i)) - i for i in range(500)]
    assert 0.0399 < min(delays) < 0.042
    assert 0.058 < max(delays) < 0.0601
    assert sum(delays) / len(delays) == pytest.approx(0.05, abs=0.001)


def test_losses_are_as_frequent_as_asked_for_by_segment() -> None:
    line = Line(Profile("p", 0, 1e9, 1e9, loss=0.01), 1e9, random.Random(5))
    lost = sum(line.loses(10 * 1460) for _ in range(5000)) / 5000
    assert lost == pytest.approx(1 - 0.99**10, abs=0.02)
    sound = Line(Profile("p", 0, 1e9, 1e9), 1e9, random.Random(5))
    assert not any(sound.loses(10**6) for _ in range(100))


def test_the_wake_up_follows_what_makes_it_late_as_often_as_early() -> None:
    line = Line(QUICK, 1e9, random.Random(0))
    for _ in range(200):
        line.woken(0.0015 - line.lead_s)
    assert line.lead_s == pytest.approx(0.0015, abs=0.0001)


# ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_custom_profile_reads_as_it_is_written() -> None:
    text = "rtt=80ms, jitter=5ms, up=20Mbit, down=1.5Gbit, loss=0.1%, on_loss=reset"
    expected = Profile("custom", 0.08, 20 * MBIT, 1500 * MBIT, 0.005, pytest.approx(0.001), "reset")  # type: ignore[arg-type]
    assert parse_profile(text) == expected
    assert all(parse_profile(name) is profile for name, profile in PROFILES.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("moon", "lan, metro, wan, home, mobile"),
        ("rtt=80ms", "lacks down, up"),
        ("rtt=80,up=1Mbit,down=1Mbit", "write it like"),
        ("rtt=80ms,up=1MB,down=1Mbit", "write it like"),
        ("rtt=80ms,up=0Mbit,down=1Mbit", "no link of such up"),
        ("rtt=9s,up=1Mbit,down=1Mbit", "no link of such rtt"),
        ("rtt=1ms,rtt=2ms,up=1Mbit,down=1Mbit", "rtt is given twice"),
        ("rtt=1ms,jitter=2ms,up=1Mbit,down=1Mbit", "jitter is more"),
        ("rtt=1ms,up=1Mbit,down=1Mbit,on_loss=cry", "write it like"),
    ],
)
def test_a_wrong_profile_is_bad_input(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_profile(text)


# ── the proxy ────────────────────────────────────────────────────────────────────────────────────────────


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        try:
            while data := await stream.receive_some(65536):
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def conditioned_echo(profile: Profile) -> AsyncIterator[Conditioner]:
    async with trio.open_nursery() as tasks:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        tasks.start_soon(trio.serve_listeners, echo, [listener])
        async with open_conditioner(profile, listener.socket.getsockname()[1], random.Random(1)) as conditioner:
            with trio.fail_after(10):
                yield conditioner
        tasks.cancel_scope.cancel()


async def dialled(conditioner: Conditioner) -> trio.SocketStream:
    return await trio.open_tcp_stream(HOST, conditioner.port)


async def is_echoed(stream: trio.SocketStream, data: bytes) -> bool:
    back = b""
    async with trio.open_nursery() as tasks:
        tasks.start_soon(stream.send_all, data)
        while len(back) < len(data) and (more := await stream.receive_some(65536)):
            back += more
    return back == data


async def test_a_link_of_100_ms_and_100_mbit_is_one_within_5_percent(autojump_clock: trio.testing.MockClock) -> None:
    """On a clock that stands still while anybody computes: how busy this machine is, every report says by itself."""
    rtt_s, bytes_s = await verify(PROFILES["wan"])
    assert rtt_s == pytest.approx(0.1, rel=0.05)
    assert bytes_s == pytest.approx(100 * MBIT, rel=0.05)


async def test_each_direction_has_a_rate_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    rtt_s, bytes_s = await verify(Profile("p", 0.01, up_bytes_s=4 * MBIT, down_bytes_s=400 * MBIT))
    assert bytes_s == pytest.approx(4 * MBIT, rel=0.05)
    assert rtt_s < 0.03


async def test_bytes_come_through_whole_and_in_order_despite_jitter_and_losses() -> None:
    profile = Profile("p", 0.004, 200 * MBIT, 200 * MBIT, jitter_s=0.004, loss=0.001)
    data = random.Random(2).randbytes(1_000_000)
    async with conditioned_echo(profile) as conditioner, await dialled(conditioner) as stream:
        assert await is_echoed(stream, data)
        assert (conditioner.passed.up, conditioner.passed.down) == (len(data), len(data))


async def test_the_end_of_a_stream_comes_through_after_what_was_sent() -> None:
    async with conditioned_echo(QUICK) as conditioner:
        async with await dialled(conditioner) as stream:
            await stream.send_all(b"last words")
            await stream.send_eof()
            back = b"".join([data async for data in stream])
            assert back == b"last words"
        while conditioner.connections:  # noqa: ASYNC110 - the proxy tells nobody
            await trio.sleep(0.005)


async def test_a_partition_holds_everything_back_until_it_heals() -> None:
    async with conditioned_echo(QUICK) as conditioner, await dialled(conditioner) as stream:
        assert await is_echoed(stream, b"before")
        conditioner.partition()
        await stream.send_all(b"held back")
        newcomer = await dialled(conditioner)
        await newcomer.send_all(b"new")
        with trio.move_on_after(0.1):
            await stream.receive_some()
            raise AssertionError("something came through")
        conditioner.heal()
        assert await stream.receive_some() == b"held back"
        assert await newcomer.receive_some() == b"new"
        await newcomer.aclose()


async def test_a_reset_breaks_what_is_open_and_nothing_else() -> None:
    async with conditioned_echo(QUICK) as conditioner, await dialled(conditioner) as stream:
        assert await is_echoed(stream, b"before")
        conditioner.reset()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        async with await dialled(conditioner) as again:
            assert await is_echoed(again, b"after")


async def test_a_loss_may_break_the_connection() -> None:
    profile = Profile("p", 0.001, 1000 * MBIT, 1000 * MBIT, loss=0.5, on_loss="reset")
    async with conditioned_echo(profile) as conditioner, await dialled(conditioner) as stream:
        with pytest.raises(BaseException) as caught:
            await is_echoed(stream, bytes(100_000))
        assert caught.group_contains(trio.BrokenResourceError)  # type: ignore[attr-defined]


async def test_a_node_that_is_gone_breaks_the_connection_of_whoever_dials_it() -> None:
    async with open_conditioner(QUICK, free_ports(1)[0], random.Random(1)) as conditioner:
        stream = await dialled(conditioner)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        assert not conditioner.connections


async def test_the_end_of_a_conditioner_breaks_its_connections_and_frees_its_port() -> None:
    async with conditioned_echo(QUICK) as conditioner:
        stream = await dialled(conditioner)
        assert await is_echoed(stream, b"x")
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(OSError, match="connect"):
        await dialled(conditioner)
    await stream.aclose()


def test_free_ports_are_different_and_none_that_the_system_gives_to_others() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    assert set(found) <= set(PORTS_NOT_GIVEN_AWAY)
