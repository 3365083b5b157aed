import math
import random
import statistics
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.routing import (
    FULL_MS,
    HOP_MS,
    PATIENCE_S_MIN,
    PREFERRED_MS,
    RECOVERY_MS,
    REPLAY_MS,
    STAY_S_MIN,
    TOKEN_S,
    find_route,
    patience_s,
    route_ms,
    weighted_spread_ms,
)
from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.errors import NoRoute
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Hop
from tests.core.adverts import advert

bounded = settings(max_examples=100, deadline=None)
LAYERS = 6
PEERS = "ABCDEF"
NOW_S = 1_700_000_000.0


delays = st.dictionaries(st.sampled_from(PEERS).map(PeerId), st.integers(0, 40).map(lambda n: n / 4), max_size=3)


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
            queue_ms=draw(st.integers(0, 8)) / 4,
            positions_free=draw(st.sampled_from([0, 100, 1000])),
            since_s=draw(st.sampled_from([0.0, NOW_S - 1000, NOW_S])),
            delays_ms=draw(delays),
            moving_to=draw(st.sampled_from([None, None, None, Span(0, 1)])),
        )
        for peer in PEERS[: draw(st.integers(0, len(PEERS)))]
    ]


def cost_ms(of: Advert, spread_ms: dict[PeerId, float], preferred: set[PeerId], positions: int) -> float:
    """The definition, written down a second time."""
    served_s = NOW_S - of.since_s if of.since_s else 0
    cost = of.step_ms + of.queue_ms + spread_ms.get(of.peer, 0)
    cost += TOKEN_S * (RECOVERY_MS + positions / 2 * REPLAY_MS) / (STAY_S_MIN + served_s)
    full = of.sessions_free == 0 or 0 < of.positions_free < positions or of.moving_to is not None
    return cost - PREFERRED_MS if of.peer in preferred else cost + FULL_MS * full


def way_ms(one: Advert, other: Advert, possible: list[Advert]) -> float:
    peers = {a.peer for a in possible}
    told = {(a.peer, b): ms for a in possible for b, ms in a.delays_ms.items() if b in peers}
    pairs: dict[frozenset[PeerId], float] = {}
    for pair, ms in told.items():
        pairs[frozenset(pair)] = max(ms, pairs.get(frozenset(pair), 0))
    default = statistics.median(pairs.values()) if pairs else HOP_MS
    return 0 if one.peer == other.peer else pairs.get(frozenset((one.peer, other.peer)), default)


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


some_peers = st.sets(st.sampled_from(PEERS).map(PeerId), max_size=2)
spreads = st.dictionaries(st.sampled_from(PEERS).map(PeerId), st.integers(0, 8).map(lambda n: n / 8))


@given(swarms(), some_peers, some_peers, spreads, st.sampled_from([0, 500, 5000]))
@settings(max_examples=300, deadline=None)
def test_the_route_is_the_cheapest_of_all_chains(
    adverts: list[Advert], avoid: set[PeerId], prefer: set[PeerId], spread_ms: dict[PeerId, float], positions: int
) -> None:
    serving = [a for a in adverts if a.peer not in avoid and a.state == "serving" and a.span is not None]
    possible = chains(serving)

    def find() -> tuple[Hop, ...]:
        return find_route(adverts, LAYERS, avoid, spread_ms, prefer=prefer, positions=positions, now_s=NOW_S)

    if not possible:
        with pytest.raises(NoRoute):
            find()
        return
    route = find()
    by_peer = {a.peer: a for a in adverts}
    chosen = tuple(by_peer[hop.peer] for hop in route)
    assert chosen in possible
    assert route == tuple(Hop(a.peer, a.span, a.addresses) for a in chosen if a.span is not None)

    def total_ms(chain: tuple[Advert, ...]) -> float:
        ring = zip(chain, (*chain[1:], chain[0]), strict=True)
        stages = sum(cost_ms(a, spread_ms, prefer, positions) for a in chain)
        return stages + sum(way_ms(one, other, serving) for one, other in ring)

    assert total_ms(chosen) == pytest.approx(min(map(total_ms, possible)))


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
    """There and back: a token goes on to the second stage, and the next one from there to the first."""
    halves = [advert("A", (0, 3), step_ms=1.0), advert("B", (3, 6), step_ms=1.0)]
    assert peers_of(find_route([*halves, advert("C", (0, 6), step_ms=2.0 + 2 * HOP_MS - 0.1)], LAYERS)) == ["C"]
    assert peers_of(find_route([*halves, advert("C", (0, 6), step_ms=2.0 + 2 * HOP_MS + 0.1)], LAYERS)) == ["A", "B"]


def test_a_near_replica_is_preferred_to_a_quick_one_far_away() -> None:
    first = advert("A", (0, 3), delays_ms={"B": 1.0, "C": 30.0})
    near, far = advert("B", (3, 6), step_ms=40.0), advert("C", (3, 6), step_ms=5.0)
    assert peers_of(find_route([first, near, far], LAYERS)) == ["A", "B"]


def test_a_peer_cannot_make_itself_nearer_than_others_find_it() -> None:
    first = advert("A", (0, 3), delays_ms={"B": 5.0, "C": 30.0})
    honest, liar = advert("B", (3, 6)), advert("C", (3, 6), delays_ms={"A": 0.0})
    assert peers_of(find_route([first, honest, liar], LAYERS)) == ["A", "B"]


def test_a_stage_with_a_queue_is_left_for_a_slower_one_without() -> None:
    queued, idle = advert("A", (0, 6), step_ms=10.0, queue_ms=30.0), advert("B", (0, 6), step_ms=20.0)
    assert peers_of(find_route([queued, idle], LAYERS)) == ["B"]


def test_a_long_session_goes_where_there_is_room_for_it() -> None:
    small = advert("A", (0, 6), step_ms=1.0, positions_free=1000)
    large = advert("B", (0, 6), step_ms=9.0, positions_free=9000)
    assert peers_of(find_route([small, large], LAYERS, positions=1000)) == ["A"]
    assert peers_of(find_route([small, large], LAYERS, positions=1001)) == ["B"]


def test_long_sessions_prefer_a_node_that_has_been_there_for_long() -> None:
    new = advert("A", (0, 6), step_ms=10.0, since_s=NOW_S - 60)
    old = advert("B", (0, 6), step_ms=10.6, since_s=NOW_S - 86_400)
    assert peers_of(find_route([new, old], LAYERS, positions=100, now_s=NOW_S)) == ["A"]
    assert peers_of(find_route([new, old], LAYERS, positions=8000, now_s=NOW_S)) == ["B"]


def test_a_survivor_that_says_it_is_full_keeps_the_session_that_it_holds() -> None:
    survivor, other = advert("A", (0, 3), step_ms=9.0, sessions_free=0), advert("B", (0, 3))
    rest = advert("C", (3, 6))
    assert peers_of(find_route([survivor, other, rest], LAYERS)) == ["B", "C"]
    assert peers_of(find_route([survivor, other, rest], LAYERS, prefer=[PeerId("A")])) == ["A", "C"]


@pytest.mark.parametrize("apart_ms", [0.0, 0.5, 2.0])
def test_replicas_are_chosen_as_often_as_their_times_say(apart_ms: float) -> None:
    rng = random.Random(5)
    replicas = [advert("A", (0, 6), step_ms=10.0), advert("B", (0, 6), step_ms=10.0 + apart_ms)]
    counts = Counter(
        peers_of(find_route(replicas, LAYERS, spread_ms=weighted_spread_ms([a.peer for a in replicas], rng, 1.0)))[0]
        for _ in range(2000)
    )
    assert counts["A"] / 2000 == pytest.approx(1 / (1 + math.exp(-apart_ms)), abs=0.04)


def test_a_route_through_a_thousand_replicas_is_found_in_a_moment() -> None:
    rng = random.Random(1)
    spans = [(0, 2), (2, 4), (4, 6), (0, 3), (3, 6)]
    adverts = [advert(f"p{i:04}", spans[i % 5], step_ms=rng.uniform(5, 50)) for i in range(1000)]
    started_s = time.perf_counter()
    find_route(adverts, LAYERS)
    assert time.perf_counter() - started_s < 1.0


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


@bounded
@given(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(0, 10_000), st.integers(0, 10_000))
def test_patience_grows_with_what_is_waited_for(one_ms: float, other_ms: float, some: int, more: int) -> None:
    slow_ms, some, more = max(one_ms, other_ms), min(some, more), max(some, more)
    assert PATIENCE_S_MIN <= patience_s(min(one_ms, other_ms), some) <= patience_s(slow_ms, some)
    assert patience_s(slow_ms, some) <= patience_s(slow_ms, more)
    assert patience_s(slow_ms, some) >= 10 * slow_ms / 1000, "a slow machine is given many times what it promised"


def test_a_routes_time_is_what_its_stages_and_the_ways_between_them_take() -> None:
    first = advert("A", (0, 3), layers=LAYERS, step_ms=5, queue_ms=1, delays_ms={PeerId("B"): 4.0})
    last = advert("B", (3, LAYERS), layers=LAYERS, step_ms=7)
    other = advert("C", (3, LAYERS), layers=LAYERS, step_ms=1000)
    route = find_route([first, last], LAYERS)
    assert route_ms([first, last, other], route) == 5 + 1 + 4 + 7 + 4
    assert route_ms([], route) == 2 * HOP_MS, "of strangers nothing is promised"
