"""Plans in which much goes wrong, and yet every request must be answered: of every span one node stays untouched."""

import random
from itertools import pairwise

from p2pgrid.ids import Span
from p2pgrid.sim.faults import Cut, Disconnect, Fault, Freeze, Kill, Leave, Thaw
from p2pgrid.sim.world import Plan

SERVING_S = 4.0
"""By then all nodes serve."""
FAULTS_S = 2.5
"""Faults come within so long after the requests."""
FROZEN_S_MAX = 4.0
"""Frozen, or cut off from one other."""


def plan_storm(seed: int) -> Plan:
    """A plan with 4 to 15 nodes, two or three of each span, and faults for all of them but one of each."""
    rng = random.Random(f"storm {seed}")
    layers = rng.choice([6, 12, 17])
    parts, copies = rng.randint(2, 5), rng.randint(2, 3)
    edges = [0, *sorted(rng.sample(range(1, layers), parts - 1)), layers]
    spans = [Span(a, b) for a, b in pairwise(edges)] * copies
    spared = {rng.randrange(copies) * parts + part for part in range(parts)}
    faults: list[Fault] = []
    for node in range(len(spans)):
        if node not in spared:
            faults += _faults_of(node, len(spans), SERVING_S + rng.uniform(0, FAULTS_S), rng)
    return Plan(
        nodes=len(spans),
        layers=layers,
        requests=rng.randint(1, 3),
        prompt_tokens=rng.choice([1, 2, 9, 20, 45]),
        max_tokens=60,
        latency_s=rng.choice([0.0005, 0.002, 0.02]),
        spans=spans,
        ask_at_s=SERVING_S,
        faults=tuple(faults),
    )


def _faults_of(node: int, nodes: int, at_s: float, rng: random.Random) -> list[Fault]:
    kind = rng.randrange(6)
    if kind == 0:
        return [Kill(node, at_s)]
    if kind == 1:
        return [Freeze(node, at_s)]
    if kind == 2:
        return [Freeze(node, at_s), Thaw(node, at_s + rng.uniform(0.1, FROZEN_S_MAX))]
    if kind == 3:
        return [Disconnect(node, at_s), Disconnect(node, at_s + rng.uniform(0, 1))]
    if kind == 4:
        other = rng.choice([i for i in range(nodes) if i != node])
        return [Cut(node, other, at_s, at_s + rng.uniform(0.5, FROZEN_S_MAX))]
    return [Leave(node, at_s)]
