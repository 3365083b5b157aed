"""When a node leaves its layers for others: it helps, it harms nobody, and it comes to an end."""

import random

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.core.placement import choose_span
from p2pgrid.core.rebalancing import Move, joins_up, should_move
from p2pgrid.core.swarm_view import missing_layers, replicas
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert
from tests.core.adverts import advert

LAYERS = 12
bounded = settings(max_examples=150, deadline=None)
sizes = st.integers(1, LAYERS)


def swarm(*spans: tuple[int, int] | Span | None, layers: int = LAYERS, span_max: int = LAYERS) -> list[Advert]:
    """Serving nodes A, B, C, … of these spans."""
    return [
        advert(chr(65 + i), span, layers=layers, span_max=span_max) if span is not None else joiner(chr(65 + i), None)
        for i, span in enumerate(spans)
    ]


def joiner(peer: str, span: tuple[int, int] | None, span_max: int = LAYERS) -> Advert:
    return advert(peer, span, layers=LAYERS, state="joining", span_max=span_max)


def move_of(adverts: list[Advert], peer: str, *, layers: int = LAYERS, claimed: bool = False) -> Move | None:
    own = next(a for a in adverts if a.peer == peer)
    assert own.span is not None
    return should_move(adverts, own.peer, own.span, own.span_max, layers, claimed=claimed)


@st.composite
def swarms_of_any_history(draw: st.DrawFn) -> list[Advert]:
    """Nodes that joined one after another, some of which have left again."""
    memory = draw(st.lists(sizes, min_size=1, max_size=12))
    spans: list[tuple[Span, int]] = []
    for span_max in memory:
        spans.append((choose_span(LAYERS, span_max, [span for span, _ in spans]), span_max))
    kept = draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
    return [
        advert(f"p{i:02}", span, layers=LAYERS, span_max=span_max)
        for i, ((span, span_max), keeps) in enumerate(zip(spans, kept, strict=True))
        if keeps
    ]


def spans_of(adverts: list[Advert]) -> list[Span]:
    return [a.span for a in adverts if a.span is not None and a.state == "serving"]


@given(swarms_of_any_history())
@bounded
def test_a_move_fits_the_memory_uncovers_no_layer_and_breaks_no_route(adverts: list[Advert]) -> None:
    before = replicas(spans_of(adverts), LAYERS)
    for mine in adverts:
        move = move_of(adverts, mine.peer)
        if move is None:
            continue
        assert len(move.span) <= mine.span_max
        others = spans_of([a for a in adverts if a.peer != mine.peer])
        without, after = replicas(others, LAYERS), replicas([*others, move.span], LAYERS)
        assert move.urgent == (min(before) == 0)
        for layer in range(LAYERS):
            assert after[layer] > 0 or before[layer] == 0
            assert without[layer] > 0 or before[layer] == 0 or (move.urgent and after[layer] > 0)
        if joins_up(spans_of(adverts), LAYERS):
            assert joins_up(others, LAYERS), "there is a route while it moves"
            assert joins_up([*others, move.span], LAYERS), "and afterwards"


@given(swarms_of_any_history())
@bounded
def test_the_layers_that_are_left_are_better_off_by_a_third_and_stay_no_worse_than_those_that_gain(
    adverts: list[Advert],
) -> None:
    before = replicas(spans_of(adverts), LAYERS)
    for mine in adverts:
        move = move_of(adverts, mine.peer)
        if move is None:
            continue
        assert mine.span is not None
        after = replicas([*spans_of([a for a in adverts if a.peer != mine.peer]), move.span], LAYERS)
        gained = min(before[layer] for layer in range(LAYERS) if after[layer] > before[layer])
        for layer in range(LAYERS):
            if after[layer] < before[layer]:
                assert 3 * before[layer] >= 4 * gained
                assert after[layer] > gained


def moved(adverts: list[Advert], peer: PeerId, span: Span) -> list[Advert]:
    return [msgspec.structs.replace(a, span=span) if a.peer == peer else a for a in adverts]


@given(swarms_of_any_history(), st.randoms(use_true_random=False))
@bounded
def test_moves_one_after_another_in_any_order_come_to_an_end(adverts: list[Advert], rng: random.Random) -> None:
    worst = min(replicas(spans_of(adverts), LAYERS))
    for _ in range(10 * len(adverts) + 1):
        moves = {a.peer: move for a in adverts if (move := move_of(adverts, a.peer)) is not None}
        if not moves:
            break
        peer = rng.choice(sorted(moves))
        adverts = moved(adverts, peer, moves[peer].span)
        assert min(replicas(spans_of(adverts), LAYERS)) >= worst
    else:
        raise AssertionError("they still move")
    assert not missing_layers(spans_of(adverts), LAYERS) or len(adverts) < LAYERS


@given(st.integers(2, 6), st.lists(st.integers(0, 5), min_size=8, max_size=60), st.randoms(use_true_random=False))
@bounded
def test_nodes_of_one_size_end_up_even(size: int, where: list[int], rng: random.Random) -> None:
    """However they began: no layer is more than 1.5 times as well covered as another, or one node more."""
    parts = LAYERS // size
    layers = parts * size
    spans = [Span(size * (part % parts), size * (part % parts) + size) for part in where]
    adverts = [advert(f"p{i:02}", span, layers=layers, span_max=size) for i, span in enumerate(spans)]
    for _ in range(10 * len(adverts)):
        moves = {a.peer: m for a in adverts if (m := move_of(adverts, a.peer, layers=layers)) is not None}
        if not moves:
            break
        peer = rng.choice(sorted(moves))
        adverts = moved(adverts, peer, moves[peer].span)
    counts = replicas(spans_of(adverts), layers)
    assert max(counts) <= max(1.5 * min(counts), min(counts) + 1)


def test_a_gap_is_filled_by_a_node_whose_layers_others_hold() -> None:
    adverts = swarm((0, 4), (4, 8), (4, 8), span_max=4)
    assert move_of(adverts, "A") is None
    assert move_of(adverts, "B") == Move(Span(8, 12), urgent=True)
    assert move_of(adverts, "C") == Move(Span(8, 12), urgent=True)


def test_a_node_with_memory_takes_the_gap_in_addition_when_nobody_can_come_over() -> None:
    adverts = swarm((0, 4), (4, 12), span_max=12)
    assert move_of(adverts, "A") is None
    assert move_of([adverts[0]], "A") == Move(Span(0, 12), urgent=True)


def test_nobody_moves_for_a_gap_that_a_joining_node_is_about_to_fill() -> None:
    adverts = swarm((0, 4), (4, 8), (4, 8), span_max=4)
    assert move_of([*adverts, joiner("D", (8, 12))], "B") is None
    assert move_of([*adverts, joiner("D", None)], "B") is None, "it has not chosen yet, and will choose that"


def test_what_a_draining_node_leaves_is_a_gap_already() -> None:
    adverts = [*swarm((0, 4), (4, 8), (4, 8), span_max=4), advert("D", (8, 12), layers=LAYERS, state="draining")]
    assert move_of(adverts, "B") == Move(Span(8, 12), urgent=True)


def test_a_node_that_is_still_joining_covers_nobody_who_would_leave() -> None:
    adverts = [*swarm((0, 4), (4, 8), span_max=4), joiner("C", (4, 8))]
    assert move_of(adverts, "B") is None


def claim(of: Advert, span: tuple[int, int]) -> Advert:
    return msgspec.structs.replace(of, moving_to=Span(*span))


def test_of_two_that_claim_a_gap_the_lower_id_goes_and_the_other_stays() -> None:
    first, second, third, rest = swarm((4, 8), (4, 8), (4, 8), (0, 4), span_max=4)
    both = [claim(first, (8, 12)), claim(second, (8, 12)), third, rest]
    assert move_of(both, "A", claimed=True) == Move(Span(8, 12), urgent=True)
    assert move_of(both, "B", claimed=True) is None
    assert move_of(both, "C") is None


def test_an_earlier_claim_counts_whoever_made_it() -> None:
    first, second, rest = swarm((4, 8), (4, 8), (0, 4), span_max=4)
    assert move_of([first, claim(second, (8, 12)), rest], "A") is None


def test_a_node_that_drains_to_move_is_expected_where_it_goes() -> None:
    first, second, rest = swarm((4, 8), (4, 8), (0, 4), span_max=4)
    on_its_way = msgspec.structs.replace(claim(second, (8, 12)), state="draining")
    for claimed in (False, True):
        assert move_of([first, on_its_way, rest], "A", claimed=claimed) is None


def test_the_last_two_holders_of_a_span_do_not_both_leave() -> None:
    """A gap that is too large for one of them."""
    first, second, rest = swarm((0, 4), (0, 4), (4, 6), span_max=4)
    both = [claim(first, (6, 10)), claim(second, (6, 10)), rest]
    assert move_of(both, "A", claimed=True) == Move(Span(6, 10), urgent=True)
    assert move_of(both, "B", claimed=True) is None


def test_layers_that_nobody_else_holds_are_not_left_for_some_that_are_held_less_well_than_others() -> None:
    adverts = swarm((0, 6), (0, 6), (0, 6), (6, 12), span_max=6)
    assert move_of(adverts, "D") is None
    assert move_of(adverts, "A") == Move(Span(6, 12), urgent=False)


def test_a_small_gain_is_not_worth_a_move() -> None:
    assert move_of(swarm(*[(0, 6)] * 4, *[(6, 12)] * 3, span_max=6), "A") is None
    assert move_of(swarm(*[(0, 6)] * 9, *[(6, 12)] * 7, span_max=6), "A") is None, "two more of nine are no third"
    assert move_of(swarm(*[(0, 6)] * 10, *[(6, 12)] * 7, span_max=6), "A") == Move(Span(6, 12), urgent=False)


def test_a_node_on_which_the_only_route_depends_stays_though_others_hold_its_layers() -> None:
    """Spans that were told to overlap by half: without the last one nothing joins up, until it has moved."""
    adverts = swarm((0, 6), (3, 12), (3, 12), (3, 12), (6, 12), span_max=3)
    assert joins_up([*spans_of(adverts[:4]), Span(0, 3)], LAYERS)
    assert not joins_up(spans_of(adverts[:4]), LAYERS)
    assert move_of(adverts, "E") is None
    assert move_of([*adverts, advert("F", (6, 12), layers=LAYERS)], "E") == Move(Span(0, 3), urgent=False)


def test_a_node_stays_for_a_route_that_is_about_to_be() -> None:
    """Nobody can use the model yet; whoever loads 0:6 will join up with us and with nobody else."""
    adverts = [*swarm((4, 12), (4, 12), (6, 12), span_max=3), joiner("J", (0, 6))]
    assert should_move(adverts, PeerId("C"), Span(6, 12), 3, LAYERS, claimed=False) is None
    others = [*adverts, advert("D", (6, 12), layers=LAYERS)]
    assert should_move(others, PeerId("C"), Span(6, 12), 3, LAYERS, claimed=False) == Move(Span(0, 3), urgent=False)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1]), max_size=6))
@example([(0, 3), (2, 6)])
@bounded
def test_spans_join_up_when_some_chain_of_them_covers_all_layers(spans: list[tuple[int, int]]) -> None:
    def reaches(start: int) -> bool:
        return start == 6 or any(a == start and reaches(b) for a, b in spans)

    assert joins_up([Span(*span) for span in spans], 6) == reaches(0)
