import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.kv_budget import LIFETIME_S, RETRY_S_MAX, RETRY_S_MIN, KvBudget

BYTES_MAX = 100
owners = st.integers(0, 8)


class KvBudgetMachine(RuleBasedStateMachine):
    """The budget beside a plain table of who holds how much."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = KvBudget(BYTES_MAX)
        self.held: dict[int, int] = {}
        self.now = 0.0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(owner=owners, nbytes=st.integers(0, BYTES_MAX + 20))
    def reserve(self, owner: int, nbytes: int) -> None:
        if owner in self.held:
            with pytest.raises(ValueError, match="holds a reservation already"):
                self.budget.reserve(owner, nbytes, self.now)
            return
        fits = sum(self.held.values()) + nbytes <= BYTES_MAX
        assert self.budget.reserve(owner, nbytes, self.now) == fits
        if fits:
            self.held[owner] = nbytes

    @rule(owner=owners)
    def release(self, owner: int) -> None:
        self.held.pop(owner, None)
        self.budget.release(owner, self.now)

    @invariant()
    def what_is_reserved_and_what_the_cache_may_hold_make_the_whole(self) -> None:
        assert self.budget.reserved == sum(self.held.values())
        assert self.budget.cache_room == BYTES_MAX - self.budget.reserved >= 0

    @invariant()
    def the_hint_is_within_its_limits(self) -> None:
        assert RETRY_S_MIN <= self.budget.retry_after_s() <= RETRY_S_MAX


TestKvBudget = KvBudgetMachine.TestCase
TestKvBudget.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.integers(0, 300))
@settings(deadline=None)
def test_what_fits_ever_fits_when_nobody_else_is_here(nbytes: int) -> None:
    budget = KvBudget(BYTES_MAX)
    assert budget.reserve("me", nbytes, 0.0) == budget.fits_ever(nbytes) == (nbytes <= BYTES_MAX)


def test_room_for_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        KvBudget(BYTES_MAX).reserve("me", -1, 0.0)


def test_who_is_refused_is_told_to_come_back_after_one_share_of_a_life() -> None:
    budget = KvBudget(BYTES_MAX)
    for owner in range(4):
        budget.reserve(owner, 25, 0.0)
    assert budget.retry_after_s() == pytest.approx(LIFETIME_S / 4)


def test_the_hint_follows_how_long_sessions_live() -> None:
    budget = KvBudget(BYTES_MAX)
    now = 0.0
    for _ in range(60):
        budget.reserve("short", 10, now)
        now += 0.4
        budget.release("short", now)
    assert budget.retry_after_s() == pytest.approx(0.4, rel=0.01)
    budget.release("short", now + 1000)  # it is gone: not another life
    assert budget.retry_after_s() == pytest.approx(0.4, rel=0.01)
    for _ in range(60):
        budget.reserve("long", 10, now)
        now += 60
        budget.release("long", now)
    assert budget.retry_after_s() == RETRY_S_MAX
