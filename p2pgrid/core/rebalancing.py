"""Whether a node that serves should hold other layers instead.

The rules are a table in docs/routing-and-placement.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pgrid.core.placement import choose_span, plan_joins
from p2pgrid.core.swarm_view import replicas
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert

GAIN_MIN = 4 / 3
"""Layers are left only for some that are held by so many times fewer nodes."""


@dataclass(frozen=True)
class Move:
    """Leave the span that is held for `span`."""

    span: Span
    urgent: bool
    """Layers of it are held by nobody."""


def should_move(
    adverts: Sequence[Advert], own: PeerId, current: Span, span_max: int, layers: int, *, claimed: bool
) -> Move | None:
    """The move by which the swarm gains enough, if there is one; None to stay.

    `adverts` are of one model. Of nodes that say they are about to move the plan is taken for done; once we have said
    so ourselves (`claimed`), only of those with a lower peer id: of two that claim at once the other one yields.
    Every move raises the worst-covered of the layers that it changes, so moves one after another come to an end.
    """
    others = [a for a in adverts if a.peer != own and (a.state != "draining" or a.moving_to is not None)]
    leaving = {
        a.peer: a.moving_to
        for a in others
        if a.moving_to is not None and (a.peer < own or not claimed or a.state == "draining")
    }
    coming = _spans(leaving.get(a.peer, a.span) for a in others)
    undecided = {a.peer: a.span_max for a in others if a.span is None}
    coming += plan_joins(layers, coming, undecided).values()
    staying = _spans(a.span for a in others if a.state == "serving" and a.peer not in leaving)

    target = choose_span(layers, span_max, coming)
    gap = min(replicas([*coming, current], layers)) == 0
    if not _gains(coming, current, target, layers) or not _harmless(staying, coming, current, target, layers, gap):
        return None
    return Move(target, gap)


def spans_to_come(adverts: Iterable[Advert], state: str) -> list[Span]:
    """The spans of those in `state`, of those about to move the new ones; a node that drains to move serves again."""
    return _spans(
        a.moving_to or a.span
        for a in adverts
        if a.state == state or (state == "serving" and a.state == "draining" and a.moving_to is not None)
    )


def joins_up(spans: Iterable[Span], layers: int) -> bool:
    """Whether some chain of `spans` covers all layers."""
    reached = {0}
    for span in sorted(spans):
        if span.start in reached:
            reached.add(span.stop)
    return layers in reached


def _gains(coming: Sequence[Span], current: Span, target: Span, layers: int) -> bool:
    """Whether the worst-covered of the layers concerned gains, and those that we leave are so much better off."""
    counts = replicas(coming, layers)
    concerned = sorted({*range(current.start, current.stop), *range(target.start, target.stop)})
    worst = min(counts[layer] + (layer in current) for layer in concerned)
    worst_after = min(counts[layer] + (layer in target) for layer in concerned)
    left = [counts[layer] + 1 for layer in concerned if layer not in target]
    return worst_after > worst and (not left or min(left) >= GAIN_MIN * worst)


def _harmless(
    staying: Sequence[Span], coming: Sequence[Span], current: Span, target: Span, layers: int, gap: bool
) -> bool:
    """Whether nobody misses us: neither while we load other layers, nor afterwards."""
    counts = replicas(staying, layers)
    for layer in range(current.start, current.stop):
        # While layers are missing no request gets through, so those that we take along may be missing for a moment.
        if counts[layer] == 0 and not (gap and layer in target):
            return False
    if joins_up([*staying, current], layers) and not joins_up(staying, layers):
        return False
    return joins_up([*coming, target], layers) or not joins_up([*coming, current], layers)


def _spans(spans: Iterable[Span | None]) -> list[Span]:
    return [span for span in spans if span is not None]
