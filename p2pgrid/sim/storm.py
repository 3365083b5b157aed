"""Plans in which much goes wrong, and yet every request must be answered: of every span one node stays untouched."""

import random

from p2pgrid.ids import Span
from p2pgrid.sim.faults import (
    Cut,
    Delay,
    Disconnect,
    Duplicate,
    Fault,
    Freeze,
    Kill,
    Leave,
    Partition,
    Slow,
    Stall,
    Thaw,
)
from p2pgrid.sim.plan import Plan

NODES = (8, 40)
SKEW = 5
"""Most storms are small: they find as much as large ones, and cost as many times less as they have fewer nodes."""
STAGES_MAX = 6
SERVING_S = 4.0
"""By then all nodes serve."""
FAULTS_S = 2.5
"""Faults come within so long after the requests."""
LASTS_S_MAX = 4.0
"""What passes has passed by then."""
SLOW_FACTORS = (10.0, 50.0, 200.0)
"""Of a step of 5 ms: up to a second, so that a prompt takes longer than any answer is waited for."""
DELAY_S = (0.1, 0.9)


def plan_storm(seed: int) -> Plan:
    """A plan with 8 to 40 nodes, two or more of each span, and faults for all of them but one of each."""
    rng = random.Random(f"storm {seed}")
    layers = rng.choice([6, 12, 17])
    nodes = NODES[0] + int((NODES[1] - NODES[0] + 1) * rng.random() ** SKEW)
    parts = rng.randint(2, min(nodes // 2, layers, STAGES_MAX))
    edges = [0, *sorted(rng.sample(range(1, layers), parts - 1)), layers]
    held = [*range(parts), *range(parts), *(rng.randrange(parts) for _ in range(nodes - 2 * parts))]
    rng.shuffle(held)
    spared = {rng.choice([node for node in range(nodes) if held[node] == part]) for part in range(parts)}
    return Plan(
        nodes=nodes,
        layers=layers,
        requests=rng.randint(1, 3),
        prompt_tokens=rng.choice([1, 2, 9, 20, 45]),
        max_tokens=60,
        latency_s=rng.choice([0.0005, 0.002, 0.02]),
        spans=[Span(edges[part], edges[part + 1]) for part in held],
        ask_at_s=SERVING_S,
        faults=tuple(_faults([node for node in range(nodes) if node not in spared], nodes, rng)),
    )


def _faults(struck: list[int], nodes: int, rng: random.Random) -> list[Fault]:
    """Something for each of `struck`: some are cut off together, each of the others has its own. And half of all
    storms double what is said.
    """
    faults: list[Fault] = []
    cut_off: list[int] = []
    if rng.random() < 0.5:
        cut_off = sorted(rng.sample(struck, rng.randint(2, max(2, len(struck) // 2))))
        at_s, healed_at_s = _while(rng, 0.5)
        faults.append(Partition(tuple(cut_off), at_s, healed_at_s))
    if rng.random() < 0.5:
        faults.append(Duplicate(*_while(rng, 0.5)))
    for node in struck:
        if node not in cut_off:
            faults += _faults_of(node, nodes, rng)
    return faults


def _faults_of(node: int, nodes: int, rng: random.Random) -> list[Fault]:
    at_s, over_at_s = _while(rng, 0.1)
    match rng.randrange(9):
        case 0:
            return [Kill(node, at_s)]
        case 1:
            return [Freeze(node, at_s)]
        case 2:
            return [Freeze(node, at_s), Thaw(node, over_at_s)]
        case 3:
            return [Disconnect(node, at_s), Disconnect(node, at_s + rng.uniform(0, 1))]
        case 4:
            return [Cut(node, rng.choice([i for i in range(nodes) if i != node]), at_s, over_at_s)]
        case 5:
            return [Stall(node, at_s)]
        case 6:
            return [Slow(node, rng.choice(SLOW_FACTORS), at_s, over_at_s)]
        case 7:
            return [Delay(node, rng.uniform(*DELAY_S), at_s, over_at_s)]
        case _:
            return [Leave(node, at_s)]


def _while(rng: random.Random, lasts_s_min: float) -> tuple[float, float]:
    """When something that passes begins and ends."""
    at_s = SERVING_S + rng.uniform(0, FAULTS_S)
    return at_s, at_s + rng.uniform(lasts_s_min, LASTS_S_MAX)
