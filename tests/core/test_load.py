"""What a stage says of its load, against loads that are known."""

import pytest

from p2pgrid.core.load import WINDOW_S, Load


def steady(batch: int, took_s: float, every_s: float, seconds: float = 60.0) -> tuple[Load, float]:
    """A stage that computed a batch of so many rows every so often, and the time now."""
    load, now_s = Load(0.0), 0.0
    while now_s < seconds:
        now_s += every_s
        load.ran(batch, took_s, now_s)
    return load, now_s


def test_a_stage_that_does_nothing_has_no_load() -> None:
    assert Load(5.0).tokens_per_s(9.0) == 0.0
    assert Load(5.0).queue_ms(9.0) == 0.0


@pytest.mark.parametrize(("batch", "every_s"), [(1, 0.05), (8, 0.05), (4, 0.5)])
def test_tokens_per_second_are_those_of_a_steady_stream(batch: int, every_s: float) -> None:
    load, now_s = steady(batch, 0.01, every_s)
    assert load.tokens_per_s(now_s) == pytest.approx(batch / every_s, rel=0.05)


def test_prefill_makes_busy_and_gives_no_tokens() -> None:
    load, now_s = steady(0, 0.1, 0.2)
    assert load.tokens_per_s(now_s) == 0.0
    assert load.queue_ms(now_s) == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(("took_s", "every_s", "wait_ms"), [(0.01, 0.1, 1.0), (0.02, 0.04, 10.0), (0.05, 0.05, 50.0)])
def test_the_wait_is_a_batch_times_the_share_of_time_in_which_one_runs(
    took_s: float, every_s: float, wait_ms: float
) -> None:
    load, now_s = steady(2, took_s, every_s)
    assert load.queue_ms(now_s) == pytest.approx(wait_ms, rel=0.05)


def test_what_is_long_ago_is_forgotten() -> None:
    load, now_s = steady(4, 0.02, 0.02)
    assert load.tokens_per_s(now_s + 5 * WINDOW_S) < 0.01 * 200
    assert load.queue_ms(now_s + 10 * WINDOW_S) < 0.01
    load.tokens_per_s(now_s + 1e6)
    assert load.queue_ms(now_s + 1e6) == 0.0
