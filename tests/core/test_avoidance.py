"""Peers that failed are left alone, longer each time, and never for good."""

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.avoidance import AVOID_S_MAX, AVOID_S_MIN, FORGET_S, PEERS_MAX, Avoidance
from p2pgrid.ids import PeerId

A, B = PeerId("A"), PeerId("B")


def avoided_s(avoidance: Avoidance, now_s: float) -> float:
    """For how long from `now_s` on A is left alone, to a tenth of a second."""
    tenths = 0
    while A in avoidance.avoided(now_s + tenths / 10):
        tenths += 1
    return tenths / 10


def test_each_failure_doubles_the_pause_up_to_a_limit() -> None:
    avoidance, now_s = Avoidance(), 100.0
    pauses = []
    for _ in range(10):
        avoidance.failed(A, now_s)
        pauses.append(avoided_s(avoidance, now_s))
        now_s += pauses[-1] + 1
    assert pauses == [min(AVOID_S_MIN * 2**i, AVOID_S_MAX) for i in range(10)]


@given(st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_many_failures_at_once_are_one(times: int) -> None:
    avoidance = Avoidance()
    for _ in range(times):
        avoidance.failed(A, 100.0)
    assert avoided_s(avoidance, 100.0) == AVOID_S_MIN


def test_success_and_time_and_need_make_good() -> None:
    avoidance = Avoidance()
    for now_s in (0.0, 10.0, 20.0):
        avoidance.failed(A, now_s)
    avoidance.failed(B, 20.0)
    assert avoidance.avoided(21.0) == {A, B}
    avoidance.worked(A)
    assert avoidance.avoided(21.0) == {B}
    avoidance.failed(A, 21.0)
    assert avoided_s(avoidance, 21.0) == AVOID_S_MIN, "it began anew"
    avoidance.failed(A, 22.0 + FORGET_S)
    assert avoided_s(avoidance, 22.0 + FORGET_S) == AVOID_S_MIN, "that was long ago"
    avoidance.pardon()
    assert avoidance.avoided(22.0 + FORGET_S) == frozenset()


def test_what_is_remembered_is_bounded() -> None:
    avoidance = Avoidance()
    for i in range(PEERS_MAX + 50):
        avoidance.failed(PeerId(str(i)), 1.0)
    assert len(avoidance.avoided(1.0)) == PEERS_MAX
    assert PeerId(str(PEERS_MAX + 49)) in avoidance.avoided(1.0)
