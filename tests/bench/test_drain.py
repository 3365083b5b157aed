"""Draining and healing measured: what is said of the answers."""

import pytest

from p2pgrid.bench.hearing import Heard
from p2pgrid.bench.scenarios.drain import is_whole, longest_gap_s
from p2pgrid.errors import NoRoute

CALM = Heard(asked_s=0.0, token_ids=[1, 2, 3], times_s=[1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("tokens", "error", "whole"),
    [([1, 2, 3], None, 1.0), ([1, 2], None, 0.0), ([1, 2, 4], None, 0.0), ([1, 2, 3], NoRoute("none"), 0.0)],
)
def test_an_answer_is_whole_when_it_is_the_undisturbed_one(
    tokens: list[int], error: NoRoute | None, whole: float
) -> None:
    assert is_whole(Heard(asked_s=0.0, token_ids=tokens, error=error), CALM) == whole


def test_the_longest_gap_counts_from_when_the_node_was_told_to_leave() -> None:
    heard = Heard(asked_s=0.0, times_s=[1.0, 5.0, 5.2, 5.9, 6.0])
    assert longest_gap_s(heard, 4.8) == pytest.approx(0.7)
    assert longest_gap_s(heard, 2.0) == pytest.approx(3.0)
    assert longest_gap_s(heard, 7.0) == 0.0
