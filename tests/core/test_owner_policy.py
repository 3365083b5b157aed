"""When the owner of a machine is taken to be back, and when to have gone."""

from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.owner_policy import BACK_S, GONE_S, QUIET_SHARE, OwnerPolicy, OwnerTerms

TERMS = OwnerTerms(load_max=0.4, back_s=3.0, gone_s=20.0)
LOOKS = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 2.0, 7.0]), st.sampled_from([0.0, 0.2, 0.21, 0.4, 0.41, 1.0])), max_size=60
)
"""Seconds since the look before, and the mean load in them."""


def told(terms: OwnerTerms, looks: list[tuple[float, float]]) -> list[bool]:
    policy = OwnerPolicy(terms)
    policy.observe(1.0, 0.0)
    times = accumulate(passed for passed, _ in looks)
    return [policy.observe(load, at) for at, (_, load) in zip(times, looks, strict=True)]


@settings(max_examples=300, deadline=None)
@given(looks=LOOKS)
def test_it_changes_its_mind_exactly_when_the_load_has_disagreed_for_long_enough(
    looks: list[tuple[float, float]],
) -> None:
    back, disagreed_s = False, 0.0
    for (passed, load), now_back in zip(looks, told(TERMS, looks), strict=True):
        disagrees = load <= QUIET_SHARE * TERMS.load_max if back else load > TERMS.load_max
        disagreed_s = disagreed_s + passed if disagrees else 0.0
        changes = disagreed_s >= (TERMS.gone_s if back else TERMS.back_s)
        assert now_back == (back != changes)
        if changes:
            back, disagreed_s = now_back, 0.0


@settings(max_examples=200, deadline=None)
@given(looks=LOOKS)
def test_between_two_changes_lies_at_least_the_time_that_the_second_one_takes(looks: list[tuple[float, float]]) -> None:
    at_s = changed_s = 0.0
    before = False
    for (passed, _), back in zip(looks, told(TERMS, looks), strict=True):
        at_s += passed
        if back != before:
            assert at_s - changed_s >= (TERMS.back_s if back else TERMS.gone_s)
            before, changed_s = back, at_s


@given(looks=LOOKS, load_max=st.sampled_from([0.4, 0.7, 0.95]))
def test_an_owner_who_asks_for_less_is_never_back_first(looks: list[tuple[float, float]], load_max: float) -> None:
    asking_more, asking_less = told(TERMS, looks), told(OwnerTerms(load_max, TERMS.back_s, TERMS.gone_s), looks)
    first = [answers.index(True) if True in answers else len(looks) for answers in (asking_more, asking_less)]
    assert first[0] <= first[1]


def test_a_load_between_quiet_and_busy_changes_nothing_either_way() -> None:
    between = [(1.0, 0.3)] * 1000
    assert not any(told(TERMS, between))
    assert all(told(TERMS, [(1.0, 1.0)] * 4 + between)[3:])


def test_a_short_burst_brings_nobody_back_and_a_short_pause_sends_nobody_away() -> None:
    policy = OwnerPolicy(OwnerTerms(0.4))
    assert not policy.observe(1.0, 0.0)
    assert not policy.observe(1.0, BACK_S - 0.1)
    assert not policy.observe(0.0, BACK_S)
    assert policy.observe(1.0, 2 * BACK_S)
    assert policy.observe(0.0, 2 * BACK_S + GONE_S - 0.1)
    assert policy.observe(1.0, 2 * BACK_S + GONE_S)
    assert not policy.observe(0.0, 2 * BACK_S + 2 * GONE_S)
