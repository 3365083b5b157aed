"""What is said of a model: only what was seen."""

import pytest

from p2pgrid.core.health import (
    CANARY_EVERY_S,
    CANARY_S_MAX,
    CLOCKS_APART_S_MAX,
    TURN_S,
    TURNS_MAX,
    canary_age_s,
    canary_is_due,
    health,
    layers_of,
)
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert
from tests.core.adverts import advert

NOW_S = 1_700_000_000.0
LAYERS = 6


def twice(*, canary_at_s: float = NOW_S - 5) -> list[Advert]:
    """Each half twice; one node has seen a token."""
    spans = [(0, 3), (3, 6), (0, 3), (3, 6)]
    nodes = [advert(chr(65 + i), span, layers=LAYERS) for i, span in enumerate(spans)]
    return [*nodes[:3], advert("D", (3, 6), layers=LAYERS, canary_at_s=canary_at_s)]


def test_a_model_is_ready_when_a_token_went_through_and_every_layer_has_a_replica() -> None:
    found = health(twice(), LAYERS, NOW_S)
    assert (found.state, found.reasons, found.replicas_min, found.canary_age_s) == ("ready", (), 2, 5.0)


@pytest.mark.parametrize("canary_at_s", [0.0, NOW_S - CANARY_S_MAX - 1, NOW_S + CLOCKS_APART_S_MAX + 1])
def test_without_a_token_in_the_last_minute_it_is_not_ready(canary_at_s: float) -> None:
    found = health(twice(canary_at_s=canary_at_s), LAYERS, NOW_S)
    assert found.state == "degraded"
    assert found.reasons == ("no token is known to have gone through a whole route in the last 60 s",)


def test_a_token_that_we_saw_ourselves_counts() -> None:
    assert health(twice(canary_at_s=0.0), LAYERS, NOW_S, NOW_S - 1).state == "ready"


def test_a_clock_that_goes_a_little_fast_is_believed() -> None:
    assert health(twice(canary_at_s=NOW_S + CLOCKS_APART_S_MAX), LAYERS, NOW_S).canary_age_s == 0.0


def test_layers_with_one_replica_are_named() -> None:
    found = health([a for a in twice() if a.peer != "A"], LAYERS, NOW_S)
    assert found.state == "degraded"
    assert found.reasons == ("layers 0:3 are served by one node only",)
    assert found.replicas_min == 1


def test_layers_that_nobody_serves_are_named_whatever_token_was_seen() -> None:
    nodes = [a for a in twice() if a.span == Span(3, 6)] + [advert("E", (0, 3), state="joining")]
    found = health(nodes, LAYERS, NOW_S)
    assert found.state == "unavailable"
    assert found.missing == (Span(0, 3),)
    assert "layers 0:3 of 0:6 are missing" in found.reasons[0]


def test_stages_that_do_not_join_up_serve_nobody() -> None:
    found = health([advert("A", (0, 4)), advert("B", (2, 6))], LAYERS, NOW_S)
    assert (found.state, found.missing) == ("unavailable", ())
    assert "no chain of stages joins up" in found.reasons[0]


def test_a_model_that_nobody_serves_is_unavailable() -> None:
    found = health([advert("E", (0, 3), state="joining")], LAYERS, NOW_S)
    assert (found.state, found.reasons, found.missing) == ("unavailable", ("no node serves it",), (Span(0, LAYERS),))


def test_the_latest_token_counts_and_none_is_none() -> None:
    assert canary_age_s([], NOW_S) is None
    assert canary_age_s(twice(canary_at_s=NOW_S - 9), NOW_S) == 9.0
    assert canary_age_s(twice(canary_at_s=NOW_S - 9), NOW_S, NOW_S - 3) == 3.0


def test_nodes_with_layer_0_take_turns_in_order_of_peer_id() -> None:
    for peer, turn in (("A", 0), ("C", 1)):
        due_s = CANARY_EVERY_S + turn * TURN_S
        assert not canary_is_due(twice(canary_at_s=NOW_S - due_s + 0.1), PeerId(peer), NOW_S, 0.0)
        assert canary_is_due(twice(canary_at_s=NOW_S - due_s), PeerId(peer), NOW_S, 0.0)


def test_nobody_waits_its_turn_when_no_token_was_ever_seen() -> None:
    assert canary_is_due(twice(canary_at_s=0.0), PeerId("C"), NOW_S, 0.0)


def test_the_last_in_a_long_row_still_comes_before_the_minute_is_over() -> None:
    many = [advert(f"p{i:02}", (0, 6), canary_at_s=NOW_S - CANARY_S_MAX + 5) for i in range(40)]
    assert canary_is_due(many, PeerId("z"), NOW_S, 0.0)
    assert CANARY_EVERY_S + TURNS_MAX * TURN_S < CANARY_S_MAX


def test_one_node_that_speaks_of_other_layers_changes_nothing() -> None:
    assert layers_of(twice()) == LAYERS
    assert layers_of([advert("X", (0, 6), layers=1024), *twice()]) == LAYERS
    assert layers_of([]) == 0
    assert health([], layers_of([]), NOW_S).state == "unavailable"
