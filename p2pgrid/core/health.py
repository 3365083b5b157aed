"""Whether a model can be used, said only of what was seen. The rules are a table in docs/routing-and-placement.md."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from p2pgrid.core.rebalancing import joins_up
from p2pgrid.core.routing import explain_no_route
from p2pgrid.core.swarm_view import replicas, runs
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert

CANARY_S_MAX = 60.0
"""A model is ready only if a token went through a whole route this short a time ago."""
CANARY_EVERY_S = 25.0
"""After so long without a token one is sent through."""
TURN_S = 5.0
"""The nodes with layer 0 do so in order of peer id: each later one waits so much longer."""
TURNS_MAX = 5
CLOCKS_APART_S_MAX = 5.0
"""A token seen in the future was seen by a wrong clock, beyond this much."""


@dataclass(frozen=True)
class Health:
    """What can be said of a model, and why."""

    state: Literal["ready", "degraded", "unavailable"]
    reasons: tuple[str, ...]
    """One line each; none when it is ready."""
    missing: tuple[Span, ...]
    """Layers that nobody serves."""
    replicas_min: int
    """How many nodes serve the layer that the fewest serve."""
    canary_age_s: float | None
    """Since a token was last seen to have gone through a whole route; None = never."""


def health(adverts: Collection[Advert], layers: int, now_s: float, canary_at_s: float = 0.0) -> Health:
    """The health of a model of so many layers by the `adverts` of its nodes, at Unix time `now_s`.

    `canary_at_s` is when we saw a token go through ourselves, 0 = never.
    """
    serving = [a for a in adverts if a.state == "serving" and a.span is not None]
    spans = [a.span for a in serving if a.span is not None]
    counts = replicas(spans, layers)
    age_s = canary_age_s(adverts, now_s, canary_at_s)
    missing, least = tuple(runs(counts, 0)), min(counts, default=0)
    if not serving:
        return Health("unavailable", ("no node serves it",), missing, least, age_s)
    if missing or not joins_up(spans, layers):
        return Health("unavailable", (explain_no_route(serving, layers),), missing, least, age_s)
    reasons: list[str] = []
    if age_s is None or age_s > CANARY_S_MAX:
        reasons.append(f"no token is known to have gone through a whole route in the last {CANARY_S_MAX:.0f} s")
    if least == 1:
        alone = ", ".join(str(span) for span in runs(counts, 1))
        reasons.append(f"layers {alone} are served by one node only")
    return Health("degraded" if reasons else "ready", tuple(reasons), missing, least, age_s)


def layers_of(adverts: Iterable[Advert]) -> int:
    """How many layers most of the nodes say that the model has; 0 when there are none."""
    said = Counter(a.layers for a in adverts)
    return said.most_common(1)[0][0] if said else 0


def canary_age_s(adverts: Iterable[Advert], now_s: float, canary_at_s: float = 0.0) -> float | None:
    """Seconds since anybody saw a token that had gone through a whole route; None = nobody ever did."""
    seen = [a.canary_at_s for a in adverts if 0 < a.canary_at_s <= now_s + CLOCKS_APART_S_MAX]
    latest_s = max([*seen, canary_at_s])
    return max(now_s - latest_s, 0.0) if latest_s else None


def canary_is_due(adverts: Collection[Advert], own: PeerId, now_s: float, canary_at_s: float) -> bool:
    """Whether it is on us, who serve layer 0, to send a token through."""
    first = [a.peer for a in adverts if a.state == "serving" and a.span is not None and a.span.start == 0]
    turn = min(sum(peer < own for peer in first), TURNS_MAX)
    age_s = canary_age_s(adverts, now_s, canary_at_s)
    return age_s is None or age_s >= CANARY_EVERY_S + TURN_S * turn
