"""Which stages a request runs through: the chain of spans over all layers that gives tokens soonest.

What a route costs is a table in docs/routing-and-placement.md.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from p2pgrid.core.swarm_view import missing_layers
from p2pgrid.errors import NoRoute
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Hop

HOP_MS = 2.0
"""One way between two stages, while no delay at all is known in the swarm."""
FULL_MS = 1000.0
"""Added to a stage without room for the session, or about to move: taken only when there is no other."""
PREFERRED_MS = 500.0
"""Taken off a stage that holds the session already: to rebuild what it has takes this long, and longer."""
RECOVERY_MS = 1000.0
"""What the loss of a stage costs an answer, besides computing its positions again."""
REPLAY_MS = 1.0
"""What computing one position again costs then."""
TOKEN_S = 0.03
"""How long a token takes, for how many of them a node is expected to stay."""
STAY_S_MIN = 30.0
"""A node that has only just come is expected to stay this long; one that has served, as long again as it has."""
SLACK = 20.0
"""An answer may take so many times as long as adverts promise: others are served besides, a machine gets slower."""
PATIENCE_S_MIN = 3.0
"""Longer than it takes to notice a peer that says nothing at all."""
READ_AT_ONCE = 16
"""Positions of a prompt that take about as long as one token of an answer, or longer."""
REPLICAS_MAX = 16
"""So many stages of one span are looked at, the quickest; the search takes time in the cube of this."""


class Chance(Protocol):
    """What is left to chance: a `random.Random`."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


def find_route(
    adverts: Sequence[Advert],
    layers: int,
    avoid: Collection[PeerId] = (),
    spread_ms: Mapping[PeerId, float] | None = None,
    *,
    prefer: Collection[PeerId] = (),
    positions: int = 0,
    now_s: float = 0.0,
) -> tuple[Hop, ...]:
    """The stages with the least time for a token, first to last.

    A token's time is what each stage takes, the way from each to the next, and the way back from the last to the
    first. Among `adverts` only those that serve count, and none of `avoid`. `prefer` are peers that hold the session
    already. `spread_ms` is added for a peer; see `weighted_spread_ms`. `positions` is how long the session may become,
    and `now_s` Unix time, for how long nodes have served (0 = do not ask). Raises NoRoute, naming what is missing.
    """
    serving = [a for a in adverts if a.state == "serving" and a.span is not None and a.peer not in avoid]
    spread = spread_ms or {}
    cost_ms = {
        a.peer: stage_ms(a, positions, now_s, preferred=a.peer in prefer) + spread.get(a.peer, 0.0) for a in serving
    }
    stages = _quickest_of_each_span(serving, cost_ms)
    delays = _Delays(stages)
    best: tuple[float, list[Advert]] | None = None
    for first in stages:
        if _span(first).start == 0:
            found = _quickest_chain(first, stages, layers, cost_ms, delays)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
    if best is None:
        raise NoRoute(explain_no_route(serving, layers))
    return tuple(Hop(a.peer, _span(a), a.addresses) for a in best[1])


def stage_ms(advert: Advert, positions: int, now_s: float, *, preferred: bool = False) -> float:
    """What a token spends at this stage, and what is to be feared of it."""
    ms = advert.step_ms + advert.queue_ms
    if now_s:
        ms += leaving_ms(now_s - advert.since_s if advert.since_s else 0.0, positions)
    if preferred:
        return ms - PREFERRED_MS
    return ms if _has_room(advert, positions) else ms + FULL_MS


def route_ms(adverts: Sequence[Advert], route: Sequence[Hop]) -> float:
    """What a token spends on the way round `route`, as its stages say; those without an advert count as nothing."""
    peers = [hop.peer for hop in route]
    known = {a.peer: a for a in adverts if a.peer in peers}
    delays = _Delays([*known.values()])
    computing_ms = sum(a.step_ms + a.queue_ms for a in known.values())
    return computing_ms + sum(delays.between_ms(a, b) for a, b in zip(peers, [*peers[1:], peers[0]], strict=True))


def patience_s(token_ms: float, positions: int) -> float:
    """How long an answer is waited for before its stages are asked whether they still compute.

    `token_ms` is what `route_ms` gives, `positions` how many were sent since the last answer.
    """
    return max(PATIENCE_S_MIN, SLACK * token_ms / 1000 * max(1.0, positions / READ_AT_ONCE))


def leaving_ms(served_s: float, positions: int) -> float:
    """For each token, what a stage's loss would cost times how likely it is meanwhile.

    Whoever has been there for long stays for long: the expected rest of a life is taken to be its past.
    """
    return TOKEN_S / (max(served_s, 0.0) + STAY_S_MIN) * (RECOVERY_MS + REPLAY_MS * positions / 2)


def weighted_spread_ms(peers: Iterable[PeerId], chance: Chance, width_ms: float) -> dict[PeerId, float]:
    """Figures to add to the costs of `peers`, so that the cheapest is a weighted random choice.

    Of replicas with costs c each is chosen with a probability proportional to exp(-c / width_ms): logarithms of
    exponential variates make a minimum that is distributed so (the Gumbel-max trick).
    """
    return {peer: width_ms * math.log(max(-math.log(1.0 - chance.random()), 1e-12)) for peer in peers}


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


def _has_room(advert: Advert, positions: int) -> bool:
    fits = advert.positions_free == 0 or advert.positions_free >= positions
    return advert.sessions_free > 0 and fits and advert.moving_to is None


def _span(advert: Advert) -> Span:
    assert advert.span is not None
    return advert.span


def _quickest_of_each_span(serving: Sequence[Advert], cost_ms: Mapping[PeerId, float]) -> list[Advert]:
    """In order of their spans; within one span in order of peer id."""
    by_span: dict[Span, list[Advert]] = {}
    for advert in sorted(serving, key=lambda a: a.peer):
        by_span.setdefault(_span(advert), []).append(advert)
    kept = [sorted(by_span[span], key=lambda a: cost_ms[a.peer])[:REPLICAS_MAX] for span in sorted(by_span)]
    return [advert for replicas in kept for advert in sorted(replicas, key=lambda a: a.peer)]


def replicas(adverts: Sequence[Advert], span: Span, positions: int, delays_ms: Mapping[PeerId, float]) -> list[Hop]:
    """Who could take the place of a stage of `span` in a session of so many positions, the quickest first.

    `delays_ms` are the ways from that stage, as far as they are known.
    """
    fitting = [a for a in adverts if a.state == "serving" and a.span == span and _has_room(a, positions)]
    fitting.sort(key=lambda a: a.step_ms + a.queue_ms + delays_ms.get(a.peer, HOP_MS))
    return [Hop(a.peer, span, a.addresses) for a in fitting]


class _Delays:
    """What is known of the ways between stages, one way."""

    def __init__(self, stages: Sequence[Advert]) -> None:
        peers = {a.peer for a in stages}
        self._ms: dict[tuple[PeerId, PeerId], float] = {}
        for advert in stages:
            for other, ms in advert.delays_ms.items():
                if other in peers:
                    # Of two figures the larger: nobody makes itself nearer than others find it.
                    pair = (min(advert.peer, other), max(advert.peer, other))
                    self._ms[pair] = max(ms, self._ms.get(pair, 0.0))
        self._unknown_ms = statistics.median(self._ms.values()) if self._ms else HOP_MS

    def between_ms(self, one: PeerId, other: PeerId) -> float:
        if one == other:
            return 0.0
        return self._ms.get((min(one, other), max(one, other)), self._unknown_ms)


def _quickest_chain(
    first: Advert, stages: Sequence[Advert], layers: int, cost_ms: Mapping[PeerId, float], delays: _Delays
) -> tuple[float, list[Advert]] | None:
    """The least cost of a chain that begins with `first`, and the chain; None when no chain does.

    `stages` are in order of their spans, so whatever can come before a stage has been seen before it.
    """
    before: dict[PeerId, Advert] = {}
    ending_at: dict[int, list[tuple[float, Advert]]] = {_span(first).stop: [(cost_ms[first.peer], first)]}
    for stage in stages:
        options = ending_at.get(_span(stage).start)
        if options is None or _span(stage).start == 0:
            continue
        ways = [(ms + delays.between_ms(previous.peer, stage.peer), previous) for ms, previous in options]
        ms, before[stage.peer] = min(ways, key=lambda way: way[0])
        ending_at.setdefault(_span(stage).stop, []).append((ms + cost_ms[stage.peer], stage))
    ends = [(ms + delays.between_ms(last.peer, first.peer), last) for ms, last in ending_at.get(layers, ())]
    if not ends:
        return None
    total_ms, last = min(ends, key=lambda end: end[0])
    chain = [last]
    while chain[-1].peer in before:
        chain.append(before[chain[-1].peer])
    return total_ms, chain[::-1]
