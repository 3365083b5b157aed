"""Which layers a joining node takes: the worst-covered first, at boundaries where routes can be joined."""

from collections.abc import Mapping, Sequence

from p2pgrid.core.swarm_view import replicas, runs
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.manifest import Manifest

RUNTIME_BYTES = 150 * 1024 * 1024
"""Python, the libraries and their buffers, measured on a node without layers."""
WEIGHTS_OVERHEAD = 1.4
"""Memory of a loaded layer per byte in the file: scales as float32, block corrections, prepacked copies."""


def choose_span(layers: int, span_max: int, taken: Sequence[Span]) -> Span:
    """The span that helps most, of at most `span_max` layers.

    Of the longest range of layers held by the fewest nodes it has the beginning, and as much as it can. While layers
    are missing it has none besides; later it reaches over others as far as memory goes, because every stage less in
    a route is a way less for each token. It ends where another span starts or ends, if one does within reach, because
    stages can only be joined there. It overlaps no span by half: as long as spans are apart or one inside the other,
    a model that is covered has a route, whoever leaves.
    """
    counts = replicas(taken, layers)
    worst = max(runs(counts, min(counts)), key=lambda run: (len(run), -run.start))
    reach = Span(worst.start, min(worst.start + span_max, layers))
    if reach.stop >= worst.stop and min(counts) == 0:
        return worst
    edges = {edge for span in taken for edge in (span.start, span.stop)} | {0, layers}
    starts = [edge for edge in edges if edge <= worst.start and min(counts) > 0] + [worst.start]
    spans = [Span(start, stop) for start in starts for stop in edges if worst.start < stop <= start + span_max]
    clean = [span for span in spans if not any(_overlap_by_half(span, other) for other in taken)]
    return max(clean, default=reach, key=lambda span: (min(span.stop, worst.stop), len(span), span))


def _overlap_by_half(a: Span, b: Span) -> bool:
    return a.start < b.start < a.stop < b.stop or b.start < a.start < b.stop < a.stop


def plan_joins(layers: int, taken: Sequence[Span], joiners: Mapping[PeerId, int]) -> dict[PeerId, Span]:
    """A span for each of `joiners` (peer → most layers it has memory for), so that no two take the same gap.

    Every joiner that sees the same swarm computes the same plan: they go in order of peer id.
    """
    plan: dict[PeerId, Span] = {}
    for peer in sorted(joiners):
        plan[peer] = choose_span(layers, joiners[peer], [*taken, *plan.values()])
    return plan


def settle(
    layers: int, span_max: int, own: PeerId, current: Span, serving: Sequence[Span], claims: Mapping[PeerId, Span]
) -> Span:
    """The span to hold after all, now that others' `claims` (peer → span, still joining) are known.

    Two nodes may have chosen the same layers before they heard of each other. The one with the higher peer id
    yields, if other layers need it more; everybody else keeps what it has.
    """
    lower = [*serving, *(span for peer, span in claims.items() if peer < own)]
    ahead = replicas(lower, layers)
    if max(ahead[current.start : current.stop]) == min(ahead) or choose_span(layers, span_max, lower) == current:
        return current
    return choose_span(layers, span_max, [*serving, *claims.values()])


def layer_bytes(manifest: Manifest) -> int:
    """Bytes of one layer's weights in the file, of the largest layer."""
    sizes: dict[str, int] = {}
    for tensor in manifest.tensors:
        if tensor.name.startswith("blk."):
            layer = tensor.name.split(".")[1]
            sizes[layer] = sizes.get(layer, 0) + tensor.nbytes
    return max(sizes.values(), default=0)


def kv_row_bytes(manifest: Manifest, span_layers: int, context_max: int) -> int:
    """Bytes of one session's keys and values in float32 when its context is full."""
    return 2 * 4 * manifest.kv_heads * manifest.head_dim * context_max * span_layers


def layers_that_fit(manifest: Manifest, memory_bytes: int, context_max: int) -> int:
    """How many layers fit into `memory_bytes` with one full session beside them; 0 when not even one does.

    Embedding and head are counted once: which layers it will be is not known yet.
    """
    room = memory_bytes - RUNTIME_BYTES - int(_ends_bytes(manifest) * WEIGHTS_OVERHEAD)
    each = int(layer_bytes(manifest) * WEIGHTS_OVERHEAD) + kv_row_bytes(manifest, 1, context_max)
    return max(0, min(room // each, manifest.layers))


def positions_that_fit(manifest: Manifest, span: Span, memory_bytes: int, context_max: int, positions_max: int) -> int:
    """How many positions of all sessions together fit beside the weights of `span`, at most `positions_max`.

    One full session is taken to fit: `layers_that_fit` has seen to that.
    """
    has_end = span.start == 0 or span.stop == manifest.layers
    weights = layer_bytes(manifest) * len(span) + (_ends_bytes(manifest) if has_end else 0)
    room = memory_bytes - RUNTIME_BYTES - int(weights * WEIGHTS_OVERHEAD)
    fitting = room // kv_row_bytes(manifest, len(span), 1)
    return min(positions_max, max(context_max, fitting))


def _ends_bytes(manifest: Manifest) -> int:
    """Bytes of embedding, last norm and head in the file."""
    return sum(tensor.nbytes for tensor in manifest.tensors if not tensor.name.startswith("blk."))
