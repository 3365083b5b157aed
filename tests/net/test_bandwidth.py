"""How much a link carries, found out on a simulated bottleneck behind deep buffers."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.net.bandwidth import BURST_BYTES_MIN, RTT_SHARE_MIN, TRANSFER_S_MIN, Bandwidth

CHUNK = 128 * 576 * 4


class Bottleneck:
    """One direction of a link: a buffer that swallows writes, so many bytes a second behind it, and a delay."""

    def __init__(self, bytes_s: float, latency_s: float, buffer_bytes: int) -> None:
        self.meter = Bandwidth()
        self.rtt_s = 2 * latency_s
        self._bytes_s = bytes_s
        self._buffer_s = buffer_bytes / bytes_s
        self._now = self._free_at = 0.0
        self._pings = 0
        self._pongs = deque[tuple[float, int]]()

    def write(self, nbytes: int, after_s: float, busy_s: float = 0.0) -> None:
        """One write, `after_s` after the one before; the peer's answer takes `busy_s` longer than it should."""
        self._wait(self._now + after_s)
        began = self._now
        self._free_at = max(self._free_at, began) + nbytes / self._bytes_s
        self._now = max(began, self._free_at - self._buffer_s)
        self._hear(self._now)
        self.meter.wrote(nbytes, began, idle_before=after_s > 0)
        self._ping(busy_s)

    def settle(self) -> float | None:
        """What was found out once everything has arrived."""
        self._wait(self._free_at + 1e6)
        return self.meter.bytes_s

    def _ping(self, busy_s: float = 0.0) -> None:
        if self.meter.wants_ping:
            self._pings += 1
            self.meter.pinged(self._pings)
            self._pongs.append((max(self._free_at, self._now) + self.rtt_s + busy_s, self._pings))

    def _hear(self, until: float) -> float | None:
        """The next answer that comes until then."""
        if not self._pongs or self._pongs[0][0] > until:
            return None
        at, nonce = self._pongs.popleft()
        assert self.meter.ponged(nonce, at, self.rtt_s)
        return at

    def _wait(self, until: float) -> None:
        while (at := self._hear(until)) is not None:
            self._now = max(at, self._now)
            self._ping()
        self._now = until


rates = st.floats(1e5, 1e9)
latencies = st.floats(1e-4, 0.3)
buffers = st.integers(0, 8_000_000)
writes = st.lists(st.tuples(st.integers(20, 1_000_000), st.sampled_from([0.0, 0.001, 0.05, 1.0])), max_size=30)


@given(rates, latencies, buffers, writes)
@settings(max_examples=200, deadline=None)
def test_no_buffer_makes_a_link_look_faster_than_it_is(
    bytes_s: float, latency_s: float, buffer_bytes: int, writes: list[tuple[int, float]]
) -> None:
    link = Bottleneck(bytes_s, latency_s, buffer_bytes)
    for nbytes, after_s in writes:
        link.write(nbytes, after_s)
    found = link.settle()
    assert found is None or found <= bytes_s * 1.001


@given(rates, latencies, buffers, st.sampled_from([0.01, 0.05, 0.5]), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_a_prompt_tells_what_a_link_carries_from_its_first_chunk_on(
    bytes_s: float, latency_s: float, buffer_bytes: int, chunk_s: float, chunks: int
) -> None:
    link = Bottleneck(bytes_s, latency_s, buffer_bytes)
    for _ in range(chunks):
        link.write(CHUNK, chunk_s)
    found = link.settle()
    resolved = CHUNK / max(RTT_SHARE_MIN * link.rtt_s, TRANSFER_S_MIN)
    assert found is not None
    assert found >= 0.98 * min(bytes_s, resolved)


@given(rates, st.lists(st.integers(20, 4000), max_size=200))
def test_the_steps_of_a_decode_say_nothing(bytes_s: float, sizes: list[int]) -> None:
    link = Bottleneck(bytes_s, 0.01, 10**6)
    for nbytes in sizes:
        link.write(nbytes, 0.01)
    assert link.settle() is None


def test_a_peer_that_is_busy_now_and_then_does_not_make_its_link_slow() -> None:
    link = Bottleneck(50e6, 0.001, 10**6)
    for number in range(40):
        link.write(CHUNK, 0.2, busy_s=0.0 if number % 4 == 0 else 0.1)
    assert link.settle() == pytest.approx(50e6, rel=0.05)


def test_a_link_that_became_slower_or_faster_is_found_out_soon() -> None:
    link = Bottleneck(50e6, 0.001, 10**6)
    for bytes_s in (50e6, 2e6, 20e6):
        link._bytes_s = bytes_s
        for _ in range(9):
            link.write(CHUNK, 1.0)
        assert link.meter.bytes_s == pytest.approx(bytes_s, rel=0.05)


def test_the_answer_to_a_later_ping_times_nothing() -> None:
    meter = Bandwidth()
    meter.wrote(BURST_BYTES_MIN, 0.0, idle_before=True)
    assert meter.wants_ping
    meter.pinged(1)
    assert not meter.ponged(2, 1.0, 0.01)
    assert meter.bytes_s is None
    assert not meter.ponged(1, 1.0, 0.01)


def test_nothing_is_found_out_before_a_round_trip_is_known() -> None:
    meter = Bandwidth()
    meter.wrote(BURST_BYTES_MIN, 0.0, idle_before=True)
    meter.pinged(1)
    assert meter.ponged(1, 1.0, None)
    assert meter.bytes_s is None
