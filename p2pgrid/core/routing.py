"""Which stages a request runs through: the quickest chain of spans that covers all layers."""

from collections.abc import Collection, Mapping, Sequence

from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.errors import NoRoute
from p2pgrid.ids import PeerId
from p2pgrid.wire.messages import Advert, Hop

HOP_MS = 2.0
"""What one more stage costs a step beyond its computing, until links publish their own figures."""
FULL_MS = 1000.0
"""Added to a stage without a free row: taken only when there is no other."""


def find_route(
    adverts: Sequence[Advert],
    layers: int,
    avoid: Collection[PeerId] = (),
    spread_ms: Mapping[PeerId, float] | None = None,
) -> tuple[Hop, ...]:
    """The stages with the least time for a step, first to last.

    Among `adverts` only those that serve count, and none of `avoid`. `spread_ms` is added for a peer: small
    random figures, of each client its own, by which clients spread over replicas that are equally quick.
    Shortest path over layer boundaries, which are few and ordered, so that one pass over the spans by their start
    finds it. Raises NoRoute, naming what is missing.
    """
    serving = [a for a in adverts if a.state == "serving" and a.span is not None and a.peer not in avoid]
    spread_ms = spread_ms or {}
    best: dict[int, tuple[float, tuple[Advert, ...]]] = {0: (0.0, ())}
    for advert in sorted(serving, key=lambda a: (a.span or (), a.peer)):
        assert advert.span is not None
        before = best.get(advert.span.start)
        if before is None:
            continue
        cost = before[0] + advert.step_ms + HOP_MS + (0.0 if advert.sessions_free else FULL_MS)
        cost += spread_ms.get(advert.peer, 0.0)
        known = best.get(advert.span.stop)
        if known is None or cost < known[0]:
            best[advert.span.stop] = (cost, (*before[1], advert))
    if layers not in best:
        raise NoRoute(explain_no_route(serving, layers))
    return tuple(Hop(a.peer, a.span, a.addresses) for a in best[layers][1] if a.span is not None)


def explain_no_route(serving: Sequence[Advert], layers: int) -> str:
    """One line that says why no chain of `serving` covers the model."""
    spans = [a.span for a in serving if a.span is not None]
    missing = missing_layers(spans, layers)
    if missing:
        ranges = ", ".join(str(span) for span in missing)
        return f"the swarm does not cover the model: layers {ranges} of 0:{layers} are missing; start a node for them"
    held = ", ".join(str(span) for span in sorted(set(spans)))
    return (
        f"every layer of 0:{layers} is held, but no chain of stages joins up ({held}): start a node with --layers"
        " that ends where another one starts"
    )
