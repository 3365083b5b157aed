"""How many tokens a second a swarm could give at most, and how many it gives."""

from collections import deque
from collections.abc import Iterable
from itertools import pairwise

from p2pgrid.wire.adverts import Advert

Capacities = dict[int, dict[int, float]]
"""Layer boundary → layer boundary → tokens a second from the one to the other."""


def throughput_bound(adverts: Iterable[Advert], layers: int) -> float:
    """Tokens a second if every stage of a route were always full and the ways between them took no time.

    Layer boundaries are places, a stage is a pipe from its first boundary to its last, and what gets from 0 to `layers`
    is the maximum flow. Stages that share a machine are counted as if each had it to itself.
    """
    left: Capacities = {}
    for advert in adverts:
        if advert.state == "serving" and advert.span is not None:
            start, stop = advert.span.start, advert.span.stop
            left.setdefault(start, {}).setdefault(stop, 0.0)
            left.setdefault(stop, {}).setdefault(start, 0.0)
            left[start][stop] += capacity(advert)
    total = 0.0
    while layers and (path := _shortest_way(left, layers)):
        steps = list(pairwise(path))
        flow = min(left[a][b] for a, b in steps)
        for a, b in steps:
            left[a][b] -= flow
            left[b][a] += flow
        total += flow
    return total


def capacity(advert: Advert) -> float:
    """Tokens a second through one stage: with a full batch as measured, else one after another."""
    return advert.tokens_per_s_max or (1000 / advert.step_ms if advert.step_ms else 0.0)


def tokens_per_s(adverts: Iterable[Advert], layers: int) -> float:
    """What the swarm gives now: every token comes out of some last stage."""
    return sum(a.tokens_per_s for a in adverts if a.state == "serving" and a.span is not None and a.span.stop == layers)


def _shortest_way(left: Capacities, end: int) -> list[int]:
    """From 0 to `end` where there is capacity left, over the fewest boundaries (Edmonds and Karp); empty if none."""
    came_from = {0: 0}
    queue = deque([0])
    while queue:
        here = queue.popleft()
        if here == end:
            way = [end]
            while way[-1] != 0:
                way.append(came_from[way[-1]])
            return way[::-1]
        for there, room in left.get(here, {}).items():
            if there not in came_from and room > 0:
                came_from[there] = here
                queue.append(there)
    return []
