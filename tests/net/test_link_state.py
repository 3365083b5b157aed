"""The protocol of a link, without any I/O."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.net.link_state import COST_BYTES_MIN, LinkState, cost_of
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.messages import Credit, Hello, LinkMessage, Ping, Pong
from tests.net.peers import token

WINDOW = 16 * 1024
SETTINGS = LinkSettings(heartbeat_s=1.0, silence_s_max=3.0, window_bytes=WINDOW)


def greeted_pair() -> tuple[LinkState, LinkState]:
    one, other = LinkState(SETTINGS, "one", 0.0), LinkState(SETTINGS, "other", 0.0)
    for sender, receiver in ((one, other), (other, one)):
        (hello,) = sender.take_control(0.0)
        assert isinstance(hello, Hello)
        receiver.received(hello, 50, 0.0)
    return one, other


@given(
    sizes=st.lists(st.integers(1, WINDOW), max_size=60),
    choices=st.lists(st.integers(0, 3), max_size=400),
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_pace_the_window_holds_and_nobody_starves(sizes: list[int], choices: list[int]) -> None:
    sender, receiver = greeted_pair()
    waiting, wire, inbox = deque(sizes), deque[int](), deque[int]()
    back: deque[LinkMessage] = deque()

    def act(choice: int) -> None:
        if choice == 0 and waiting and sender.may_send(cost_of(waiting[0])):
            sender.spend(cost_of(waiting[0]))
            wire.append(waiting.popleft())
        elif choice == 1 and wire:
            nbytes = wire.popleft()
            assert receiver.received(token(0), nbytes, 0.0) is not None  # never a violation
            inbox.append(cost_of(nbytes))
            assert sum(inbox) <= WINDOW
        elif choice == 2 and inbox:
            receiver.consumed(inbox.popleft())
        elif choice == 3:
            back.extend(receiver.take_control(0.0))
            while back:
                sender.received(back.popleft(), 30, 0.0)

    for choice in choices:
        act(choice)
    rounds = 0
    while waiting or wire or inbox:  # from anywhere, everything gets through
        for choice in (0, 1, 2, 3):
            act(choice)
        receiver.tick(0.0)
        rounds += 1
        assert rounds < 1000


@given(sizes=st.lists(st.integers(0, 4000), min_size=20, max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_sender_that_ignores_the_window_is_found_out(sizes: list[int]) -> None:
    _, receiver = greeted_pair()
    allowed = WINDOW
    for nbytes in sizes:
        allowed -= max(COST_BYTES_MIN, nbytes)
        if allowed < 0:
            with pytest.raises(PeerMisbehaved, match="window"):
                receiver.received(token(0), nbytes, 0.0)
            return
        receiver.received(token(0), nbytes, 0.0)


def test_nothing_but_hello_comes_first_and_only_once() -> None:
    state = LinkState(SETTINGS, "", 0.0)
    for message in (Ping(1), Pong(1), Credit(1), token(0)):
        with pytest.raises(PeerMisbehaved, match="before Hello"):
            state.received(message, 10, 0.0)
    state.received(Hello("x", 100), 10, 0.0)
    with pytest.raises(PeerMisbehaved, match="second Hello"):
        state.received(Hello("x", 100), 10, 0.0)


def test_a_ping_goes_out_when_the_link_was_quiet_for_a_heartbeat() -> None:
    one, other = greeted_pair()
    one.tick(0.0)
    assert [type(m) for m in one.take_control(0.0)] == [Ping]
    one.sent(20, 0.0, 0.0)
    one.tick(0.9)
    assert one.take_control(0.9) == []
    one.heard(0.9)
    assert one.tick(1.0)
    (ping,) = one.take_control(1.0)
    other.received(ping, 10, 1.2)
    (pong,) = other.take_control(1.2)
    assert pong == Pong(one.pinged)
    one.received(pong, 10, 1.5)
    assert one.rtt_s == pytest.approx(0.5)


def test_a_ping_behind_a_burst_times_the_link_and_not_its_round_trip() -> None:
    one, other = greeted_pair()

    def ping_and_back(at: float, there: float) -> None:
        (ping,) = one.take_control(at)
        other.received(ping, 10, there)
        (pong,) = other.take_control(there)
        one.received(pong, 10, there + 0.1)

    one.ask_for_ping()
    ping_and_back(0.0, 0.1)
    assert one.rtt_s == pytest.approx(0.2)
    one.sent(100_000, 1.0, 1.001)
    ping_and_back(1.001, 2.1)  # it takes a second for the burst to get there
    assert one.bandwidth.bytes_s == pytest.approx(100_000)
    assert one.rtt_s == pytest.approx(0.2)
    assert one.answered == 2, "it is a sign of life like any other"


def test_a_busy_link_still_measures_its_round_trip() -> None:
    one, other = greeted_pair()
    now = 0.0
    for _ in range(200):  # bursts all the time, for 20 s
        one.sent(100_000, now, now)
        one.heard(now)
        for at in (now, now + 0.05):
            for ping in one.take_control(at):
                other.received(ping, 10, at)
                for pong in other.take_control(at):
                    one.received(pong, 10, at + 0.02)
        one.tick(now + 0.05)
        now += 0.1
    assert one.rtt_s == pytest.approx(0.02)


def test_many_pings_are_answered_once() -> None:
    one, _ = greeted_pair()
    for nonce in range(10_000):
        one.received(Ping(nonce), 10, 0.0)
    assert one.take_control(0.0) == [Pong(9_999)]


def test_silence_ends_a_link_and_any_byte_keeps_it() -> None:
    state, _ = greeted_pair()
    now = 0.0
    while now < 10:
        now += 1.0
        state.heard(now)
        assert state.tick(now)
    assert state.tick(11.0)
    assert state.tick(12.9)
    assert not state.tick(13.0)


def test_a_node_that_slept_itself_listens_once_more_before_it_gives_up() -> None:
    state, _ = greeted_pair()
    assert state.tick(500.0), "it was us who slept"
    assert state.tick(500.9)
    assert not state.tick(501.0), "the peer is silent after all"


@given(at=st.lists(st.floats(0, 5), max_size=50))
@settings(max_examples=50, deadline=None)
def test_the_next_tick_is_always_ahead(at: list[float]) -> None:
    state, _ = greeted_pair()
    now = 0.0
    for pause in at:
        now += pause
        assert now < state.next_tick(now) <= now + SETTINGS.silence_s_max
        state.tick(now)
