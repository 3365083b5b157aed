import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.routing import FULL_MS, HOP_MS, find_route
from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.errors import NoRoute
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.messages import Advert, Hop
from tests.core.adverts import advert

bounded = settings(max_examples=100, deadline=None)
LAYERS = 6
PEERS = "ABCDEF"


@st.composite
def swarms(draw: st.DrawFn) -> list[Advert]:
    """Up to six peers, each with a span that starts and ends where few others do, so that chains are frequent."""
    edges = st.sampled_from([0, 1, 3, 4, LAYERS])
    spans = st.tuples(edges, edges).filter(lambda s: s[0] < s[1])
    return [
        advert(
            peer,
            draw(spans | st.just((0, 3)) | st.just((3, LAYERS)) | st.none()),
            layers=LAYERS,
            state=draw(st.sampled_from(["serving", "serving", "serving", "joining", "draining"])),
            step_ms=draw(st.integers(0, 40)) / 4,
            sessions_free=draw(st.integers(0, 2)),
        )
        for peer in PEERS[: draw(st.integers(0, len(PEERS)))]
    ]


def cost_ms(of: Advert, spread_ms: dict[PeerId, float]) -> float:
    return of.step_ms + HOP_MS + (0 if of.sessions_free else FULL_MS) + spread_ms.get(of.peer, 0)


def chains(adverts: list[Advert], start: int = 0) -> list[tuple[Advert, ...]]:
    """Every chain of serving stages over layers `[start, LAYERS)`."""
    if start == LAYERS:
        return [()]
    return [
        (first, *rest)
        for first in adverts
        if first.state == "serving" and first.span is not None and first.span.start == start
        for rest in chains(adverts, first.span.stop)
    ]


spreads = st.dictionaries(st.sampled_from(PEERS).map(PeerId), st.integers(0, 8).map(lambda n: n / 8))


@given(swarms(), st.sets(st.sampled_from(PEERS).map(PeerId), max_size=2), spreads)
@bounded
def test_the_route_is_the_cheapest_of_all_chains(
    adverts: list[Advert], avoid: set[PeerId], spread_ms: dict[PeerId, float]
) -> None:
    possible = chains([a for a in adverts if a.peer not in avoid])
    if not possible:
        with pytest.raises(NoRoute):
            find_route(adverts, LAYERS, avoid, spread_ms)
        return
    route = find_route(adverts, LAYERS, avoid, spread_ms)
    by_peer = {a.peer: a for a in adverts}
    chosen = tuple(by_peer[hop.peer] for hop in route)
    assert chosen in possible
    assert route == tuple(Hop(a.peer, a.span, a.addresses) for a in chosen if a.span is not None)
    cheapest = min(sum(cost_ms(a, spread_ms) for a in chain) for chain in possible)
    assert sum(cost_ms(a, spread_ms) for a in chosen) == pytest.approx(cheapest)


@given(swarms())
@bounded
def test_the_order_of_the_adverts_does_not_matter(adverts: list[Advert]) -> None:
    if chains(adverts):
        assert find_route(adverts[::-1], LAYERS) == find_route(adverts, LAYERS)


@given(swarms())
@bounded
def test_a_missing_route_names_exactly_the_missing_layers_or_says_that_no_chain_joins_up(adverts: list[Advert]) -> None:
    if chains(adverts):
        return
    gaps = missing_layers([a.span for a in adverts if a.state == "serving" and a.span is not None], LAYERS)
    with pytest.raises(NoRoute) as caught:
        find_route(adverts, LAYERS)
    message = str(caught.value)
    if gaps:
        assert f"layers {', '.join(str(gap) for gap in gaps)} of 0:{LAYERS} are missing" in message
    else:
        assert f"every layer of 0:{LAYERS} is held, but no chain of stages joins up" in message


def peers_of(route: tuple[Hop, ...]) -> list[str]:
    return [hop.peer for hop in route]


def test_a_stage_with_a_free_session_is_preferred_to_a_quicker_one_without() -> None:
    full, free = advert("A", (0, 6), step_ms=1, sessions_free=0), advert("B", (0, 6), step_ms=500, sessions_free=1)
    assert peers_of(find_route([full, free], LAYERS)) == ["B"]
    assert peers_of(find_route([full], LAYERS)) == ["A"]


def test_a_longer_chain_with_free_sessions_is_preferred_to_a_full_stage() -> None:
    adverts = [advert("A", (0, 6), sessions_free=0), advert("B", (0, 3), step_ms=9), advert("C", (3, 6), step_ms=9)]
    assert peers_of(find_route(adverts, LAYERS)) == ["B", "C"]


def test_one_stage_less_is_worth_what_a_hop_costs() -> None:
    halves = [advert("A", (0, 3), step_ms=1.0), advert("B", (3, 6), step_ms=1.0)]
    assert peers_of(find_route([*halves, advert("C", (0, 6), step_ms=2.0 + HOP_MS - 0.1)], LAYERS)) == ["C"]
    assert peers_of(find_route([*halves, advert("C", (0, 6), step_ms=2.0 + HOP_MS + 0.1)], LAYERS)) == ["A", "B"]


def test_of_equal_stages_the_lower_peer_id_is_taken_unless_the_client_spreads() -> None:
    equal = [advert(peer, (0, 6)) for peer in "CAB"]
    assert peers_of(find_route(equal, LAYERS)) == ["A"]
    assert peers_of(find_route(equal, LAYERS, spread_ms={PeerId("A"): 0.5, PeerId("B"): 0.25, PeerId("C"): 0.1})) == [
        "C"
    ]


def test_a_peer_to_avoid_is_not_in_the_route_and_is_missed_when_it_is_the_only_one() -> None:
    adverts = [advert("A", (0, 3)), advert("B", (3, 6)), advert("C", (3, 6), step_ms=50.0)]
    assert peers_of(find_route(adverts, LAYERS)) == ["A", "B"]
    assert peers_of(find_route(adverts, LAYERS, {PeerId("B")})) == ["A", "C"]
    with pytest.raises(NoRoute, match="layers 0:3 of 0:6 are missing"):
        find_route(adverts, LAYERS, {PeerId("A")})


def test_nodes_that_join_or_drain_are_in_no_route() -> None:
    adverts = [advert("A", (0, 3)), advert("B", (3, 6), state="joining"), advert("C", (3, 6), state="draining")]
    with pytest.raises(NoRoute, match="layers 3:6 of 0:6 are missing"):
        find_route(adverts, LAYERS)


def test_the_messages_are_one_line_and_say_what_to_do() -> None:
    with pytest.raises(NoRoute) as missing:
        find_route([advert("A", (2, 4)), advert("B", Span(5, 10))], 12)
    assert str(missing.value) == (
        "the swarm does not cover the model: layers 0:2, 4:5, 10:12 of 0:12 are missing; start a node for them"
    )
    with pytest.raises(NoRoute) as apart:
        find_route([advert("A", (0, 8)), advert("B", (4, 12)), advert("C", (10, 12))], 12)
    assert str(apart.value) == (
        "every layer of 0:12 is held, but no chain of stages joins up (0:8, 4:12, 10:12): start a node with --layers"
        " that ends where another one starts"
    )
