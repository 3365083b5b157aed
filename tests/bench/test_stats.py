"""Known samples, and what must be said of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.bench.stats import p99, ratio, row

positive = st.floats(1e-6, 1e6)


def test_a_row_says_median_least_and_most_and_keeps_the_samples_in_their_order() -> None:
    said = row("swarm", "ttft_s", "s", [3.0, 1.0, 2.0, 10.0], thrown_out=2)
    assert (said.median, said.min, said.max) == (2.5, 1.0, 10.0)
    assert said.samples == (3.0, 1.0, 2.0, 10.0)
    assert said.thrown_out == 2
    assert said.p99 is None


def test_the_99th_percentile_is_given_from_100_samples_on() -> None:
    assert p99([float(n) for n in range(99)]) is None
    assert p99([float(n) for n in range(1, 101)]) == 99.0
    assert p99([float(n) for n in reversed(range(1, 1001))]) == 990.0


def test_ratios_are_taken_pair_by_pair_before_their_median() -> None:
    """The machine is twice as slow in pair 1: both suffer alike, and the ratio does not."""
    said = ratio(
        "decode_tokens_per_s", "swarm", "one_process", {0: 80.0, 1: 30.0, 2: 90.0}, {0: 100.0, 1: 50.0, 2: 90.0}
    )
    assert said is not None
    assert said.samples == pytest.approx((0.8, 0.6, 1.0))
    assert (said.median, said.min, said.max) == pytest.approx((0.8, 0.6, 1.0))


def test_a_pair_that_one_side_lacks_or_has_as_nothing_is_left_out() -> None:
    said = ratio("m", "a", "b", {0: 1.0, 1: 2.0, 3: 5.0}, {1: 4.0, 2: 8.0, 3: 0.0})
    assert said is not None
    assert said.samples == (0.5,)
    assert ratio("m", "a", "b", {0: 1.0}, {1: 1.0}) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(positive, min_size=1, max_size=300))
def test_what_is_said_lies_between_least_and_most(samples: list[float]) -> None:
    said = row("a", "m", "s", samples)
    assert said.min <= said.median <= said.max
    if said.p99 is not None:
        assert said.p99 in samples
        assert sum(sample <= said.p99 for sample in samples) >= 0.99 * len(samples)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 20), positive, min_size=1))
def test_a_system_over_itself_is_one(samples: dict[int, float]) -> None:
    said = ratio("m", "a", "a", samples, samples)
    assert said is not None
    assert set(said.samples) == {1.0}
