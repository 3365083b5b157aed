from collections.abc import Iterator, Sequence
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.core.placement import (
    RUNTIME_BYTES,
    WEIGHTS_OVERHEAD,
    choose_span,
    kv_row_bytes,
    layer_bytes,
    layers_that_fit,
    plan_joins,
    positions_that_fit,
    settle,
)
from p2pgrid.core.routing import find_route
from p2pgrid.core.swarm_view import missing_layers, replicas, runs
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.manifest import Manifest, TensorEntry
from tests.core.adverts import advert

bounded = settings(max_examples=100, deadline=None)
LAYERS = 12
sizes = st.integers(1, LAYERS + 2)
any_spans = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(1, LAYERS)).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s)),
    max_size=6,
)


def has_route(spans: list[Span], layers: int) -> bool:
    """Whether a chain joins up; raises NoRoute, with the reason, when none does."""
    return bool(find_route([advert(f"p{i:03}", span) for i, span in enumerate(spans)], layers))


@given(sizes, any_spans)
@example(12, [Span(0, 6), Span(0, 6), Span(6, 12)])
@bounded
def test_a_span_stays_within_the_model_and_the_memory_and_has_the_layers_where_help_is_needed_most(
    span_max: int, taken: list[Span]
) -> None:
    span = choose_span(LAYERS, span_max, taken)
    counts = replicas(taken, LAYERS)
    assert len(span) <= span_max
    assert span.stop <= LAYERS
    longest = max(runs(counts, min(counts)), key=lambda run: (len(run), -run.start))
    assert longest.start in span


def test_a_node_takes_as_much_as_it_can_once_nothing_is_missing() -> None:
    thirds = [Span(0, 4), Span(4, 8), Span(8, 12)]
    assert choose_span(LAYERS, 4, [*thirds, Span(0, 4)]) == Span(4, 8)
    assert choose_span(LAYERS, 8, [*thirds, Span(0, 4)]) == Span(4, 12)
    assert choose_span(LAYERS, 12, [*thirds, Span(0, 4)]) == Span(0, 12)
    assert choose_span(LAYERS, 12, [Span(0, 4), Span(8, 12)]) == Span(4, 8), "none besides the missing ones"


@given(sizes, any_spans)
@bounded
def test_a_gap_is_filled_exactly_when_it_fits_and_else_from_its_start(span_max: int, taken: list[Span]) -> None:
    gaps = missing_layers(taken, LAYERS)
    if not gaps:
        return
    longest = max(gaps, key=len)  # the first of those that are equally long
    assert choose_span(LAYERS, span_max, taken) == Span(longest.start, min(longest.stop, longest.start + span_max))


@given(sizes, any_spans)
@bounded
def test_a_span_ends_where_stages_can_be_joined_if_that_is_within_reach(span_max: int, taken: list[Span]) -> None:
    span = choose_span(LAYERS, span_max, taken)
    edges = {LAYERS, *(s.start for s in taken), *(s.stop for s in taken)}
    if any(span.start < edge <= span.start + span_max for edge in edges):
        assert span.stop in edges
    else:
        assert len(span) == min(span_max, LAYERS - span.start)


@given(st.integers(1, 40), st.lists(st.integers(1, 45), min_size=1, max_size=40))
@bounded
def test_nodes_that_join_one_after_another_cover_the_model_and_then_there_is_a_route(
    layers: int, joining: list[int]
) -> None:
    spans: list[Span] = []
    for span_max in joining:
        had_gaps = missing_layers(spans, layers)
        spans.append(choose_span(layers, span_max, spans))
        if had_gaps:
            assert max(replicas(spans, layers)) == 1, "as long as layers are missing nobody takes one twice"
        if not missing_layers(spans, layers):
            assert has_route(spans, layers)
    if len(joining) >= layers:
        assert not missing_layers(spans, layers)


events = sizes | st.integers(-20, -1)


def swarms(layers: int, events: Sequence[int]) -> Iterator[list[Span]]:
    """The spans held after each event. Positive: a node of that size joins. Negative: one of those there leaves."""
    spans: list[Span] = []
    yield spans
    for event in events:
        if event > 0:
            spans = [*spans, choose_span(layers, event, spans)]
        elif spans:
            gone = (-1 - event) % len(spans)
            spans = [*spans[:gone], *spans[gone + 1 :]]
        yield spans


@given(st.integers(1, 20), st.lists(events, max_size=40))
@example(20, [10, 10, 4, 20, -2, -2])
@settings(max_examples=100, deadline=None)
def test_whoever_leaves_a_model_that_is_still_covered_has_a_route(layers: int, events: list[int]) -> None:
    for spans in swarms(layers, events):
        if not missing_layers(spans, layers):
            assert has_route(spans, layers)


joiner_maps = st.dictionaries(st.sampled_from("ABCDEF").map(PeerId), sizes, min_size=1)


@given(any_spans, joiner_maps, st.randoms(use_true_random=False))
@bounded
def test_everybody_plans_the_same_joins(taken: list[Span], joiners: dict[PeerId, int], rng: Random) -> None:
    shuffled = list(joiners.items())
    rng.shuffle(shuffled)
    plan = plan_joins(LAYERS, taken, joiners)
    assert plan_joins(LAYERS, taken, dict(shuffled)) == plan
    assert set(plan) == set(joiners)
    assert all(len(span) <= joiners[peer] for peer, span in plan.items())


@given(joiner_maps)
@bounded
def test_nodes_that_plan_together_take_a_layer_twice_only_when_all_are_held(joiners: dict[PeerId, int]) -> None:
    spans = list(plan_joins(LAYERS, [], joiners).values())
    gaps = missing_layers(spans, LAYERS)
    assert not gaps or max(replicas(spans, LAYERS)) == 1
    assert gaps or has_route(spans, LAYERS)


def settle_in_order(
    order: Sequence[PeerId], layers: int, sizes_of: dict[PeerId, int], serving: list[Span], claims: dict[PeerId, Span]
) -> dict[PeerId, Span]:
    """The spans after each of `order` settled, knowing what all the others hold at that time."""
    held = dict(claims)
    for peer in order:
        others = {other: span for other, span in held.items() if other != peer}
        held[peer] = settle(layers, sizes_of[peer], peer, held[peer], serving, others)
    return held


LOW, HIGH = PeerId("A"), PeerId("B")


@given(st.lists(events, max_size=12), sizes, st.permutations([LOW, HIGH]))
@example([3, 1, 3, 9, 9, 7, -4, -1, 8], 7, [LOW, HIGH])
@settings(max_examples=100, deadline=None)
def test_of_two_nodes_that_chose_the_same_layers_the_lower_id_keeps_them(
    before: list[int], span_max: int, order: list[PeerId]
) -> None:
    serving = list(swarms(LAYERS, before))[-1]
    blind = choose_span(LAYERS, span_max, serving)
    held = settle_in_order(order, LAYERS, {LOW: span_max, HIGH: span_max}, serving, {LOW: blind, HIGH: blind})
    assert held[LOW] == blind
    counts = replicas([*serving, blind], LAYERS)
    if min(counts[blind.start : blind.stop]) > min(counts):
        assert held[HIGH] != blind, "there was room elsewhere"
    if missing_layers([*serving, blind], LAYERS):
        assert replicas(held.values(), LAYERS) == replicas({*held.values()}, LAYERS)
        assert max(replicas(held.values(), LAYERS)) == 1


@given(st.data(), st.integers(1, 20), st.lists(sizes, min_size=1, max_size=5))
@bounded
def test_after_all_settled_a_layer_is_held_twice_only_when_none_is_missing(
    data: st.DataObject, layers: int, memory: list[int]
) -> None:
    """Nodes that start at once into an empty swarm and hear of each other only after they chose."""
    sizes_of = {PeerId(f"p{i}"): size for i, size in enumerate(memory)}
    claims = {peer: choose_span(layers, size, []) for peer, size in sizes_of.items()}
    order = data.draw(st.permutations(list(sizes_of)))
    held = settle_in_order(order, layers, sizes_of, [], claims)
    assert held[PeerId("p0")] == claims[PeerId("p0")]
    gaps = missing_layers(held.values(), layers)
    assert not gaps or max(replicas(held.values(), layers)) == 1
    assert gaps or has_route(list(held.values()), layers)


@given(st.lists(sizes, min_size=1, max_size=6))
@bounded
def test_nodes_that_chose_knowing_all_others_stay_where_they_are(memory: list[int]) -> None:
    sizes_of = {PeerId(f"p{i}"): size for i, size in enumerate(memory)}
    plan = plan_joins(LAYERS, [], sizes_of)
    assert settle_in_order(list(plan), LAYERS, sizes_of, [], plan) == plan


def manifest(layers: int = 30, *, layer_bytes: int = 3_000_000, ends_bytes: int = 28_000_000) -> Manifest:
    """Of a model whose layers have two tensors each, the last layer's a little smaller."""
    tensors = [TensorEntry("token_embd.weight", "Q8_0", (1, 1), 0, ends_bytes)]
    for i in range(layers):
        less = 100 if i == layers - 1 else 0
        tensors.append(TensorEntry(f"blk.{i}.attn_q.weight", "Q4_1", (1, 1), 0, layer_bytes - 1000))
        tensors.append(TensorEntry(f"blk.{i}.attn_norm.weight", "F32", (1,), 0, 1000 - less))
    return Manifest(
        format=1,
        architecture="llama",
        layers=layers,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn=1536,
        vocab=49152,
        context=8192,
        rope_theta=1e5,
        norm_eps=1e-5,
        weights="0" * 64,
        weights_bytes=0,
        tokenizer="0" * 64,
        tensors=tuple(tensors),
        parts={},
    )


def test_the_bytes_of_layers_and_rows_are_what_they_are() -> None:
    assert layer_bytes(manifest()) == 3_000_000
    # keys and values, float32, 3 heads of 64, 2048 positions, 10 layers
    assert kv_row_bytes(manifest(), 10, 2048) == 2 * 4 * 3 * 64 * 2048 * 10


contexts = st.integers(1, 8192)
memories = st.integers(0, 4 * 1024**3)


@given(st.integers(1, 40), memories, memories, contexts)
@bounded
def test_more_memory_never_fits_fewer_layers_and_never_more_than_the_model_has(
    layers: int, memory: int, more: int, context_max: int
) -> None:
    model = manifest(layers)
    fit = layers_that_fit(model, memory, context_max)
    assert 0 <= fit <= layers_that_fit(model, memory + more, context_max) <= layers
    assert fit <= layers_that_fit(model, memory, max(1, context_max // 2))


@given(st.integers(1, 40), memories, contexts)
@bounded
def test_the_layers_that_fit_do_fit_and_one_more_would_not(layers: int, memory: int, context_max: int) -> None:
    model = manifest(layers)
    fit = layers_that_fit(model, memory, context_max)

    def needed(span_layers: int) -> int:
        weights = int(28_000_000 * WEIGHTS_OVERHEAD) + span_layers * int(3_000_000 * WEIGHTS_OVERHEAD)
        return RUNTIME_BYTES + weights + kv_row_bytes(model, span_layers, context_max)

    assert fit == 0 or needed(fit) <= memory
    assert fit == layers or needed(fit + 1) > memory


@given(st.integers(1, 30), memories, memories, contexts, st.integers(1, 2**20))
@bounded
def test_more_memory_never_fits_fewer_positions_and_one_session_always_fits(
    stop: int, memory: int, more: int, context_max: int, positions_max: int
) -> None:
    span = Span(0, stop)
    positions = positions_that_fit(manifest(), span, memory, context_max, positions_max)
    assert min(context_max, positions_max) <= positions
    assert positions <= positions_that_fit(manifest(), span, memory + more, context_max, positions_max) <= positions_max


def test_a_node_without_memory_for_a_layer_is_told_zero() -> None:
    assert layers_that_fit(manifest(), RUNTIME_BYTES, 8192) == 0
    assert layers_that_fit(manifest(), 64 * 1024**3, 8192) == 30
