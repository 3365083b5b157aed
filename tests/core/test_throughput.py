"""The throughput bound, against every way to cut a swarm in two."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.throughput import throughput_bound, tokens_per_s
from p2pgrid.ids import Span
from p2pgrid.wire.adverts import Advert
from tests.core.adverts import advert

LAYERS = 6


@st.composite
def stages(draw: st.DrawFn) -> Advert:
    start = draw(st.integers(0, LAYERS - 1))
    span = Span(start, draw(st.integers(start + 1, LAYERS)))
    state = draw(st.sampled_from(["serving", "serving", "joining", "draining"]))
    return advert("A", span, layers=LAYERS, state=state, tokens_per_s_max=draw(st.integers(1, 20)) * 10.0)


@given(st.lists(stages(), max_size=9))
@settings(max_examples=200, deadline=None)
def test_the_bound_is_the_capacity_of_the_narrowest_cut(adverts: list[Advert]) -> None:
    """Maximum flow and minimum cut are equal: all the ways to put the inner boundaries on one of two sides."""
    serving = [(a.span, a.tokens_per_s_max) for a in adverts if a.state == "serving" and a.span is not None]
    cuts = []
    for count in range(LAYERS):
        for inner in combinations(range(1, LAYERS), count):
            near = {0, *inner}
            cuts.append(sum(rate for span, rate in serving if span.start in near and span.stop not in near))
    assert throughput_bound(adverts, LAYERS) == pytest.approx(min(cuts))


def test_the_narrowest_part_counts_and_replicas_add_up() -> None:
    first, second = advert("A", (0, 3), tokens_per_s_max=100.0), advert("B", (3, 6), tokens_per_s_max=30.0)
    assert throughput_bound([first, second], LAYERS) == 30.0
    assert throughput_bound([first, second, advert("C", (3, 6), tokens_per_s_max=50.0)], LAYERS) == 80.0
    assert throughput_bound([first], LAYERS) == 0.0
    assert throughput_bound([], 0) == 0.0


def test_a_stage_whose_batches_were_not_measured_gives_a_token_a_step() -> None:
    assert throughput_bound([advert("A", (0, 6), step_ms=20.0)], LAYERS) == 50.0
    assert throughput_bound([advert("A", (0, 6), step_ms=0.0)], LAYERS) == 0.0


def test_what_a_swarm_gives_is_what_its_last_stages_give() -> None:
    first = advert("A", (0, 3), tokens_per_s=40.0)
    lasts = [advert("B", (3, 6), tokens_per_s=30.0), advert("C", (3, 6), tokens_per_s=10.0)]
    left = advert("D", (3, 6), tokens_per_s=5.0, state="draining")
    assert tokens_per_s([first, *lasts, left], LAYERS) == 40.0
