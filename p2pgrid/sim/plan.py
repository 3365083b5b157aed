"""What is simulated, and what comes of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pgrid.ids import Span
from p2pgrid.sim.faults import Fault


@dataclass(frozen=True)
class Plan:
    """What is simulated, besides the seed."""

    nodes: int = 5
    layers: int = 12
    span_max: int | None = None
    """None: so many that the nodes together hold every layer about twice."""
    span_maxes: Sequence[int] = ()
    """Of each node its own, instead."""
    spans: Sequence[Span] = ()
    """The layers of each node; empty: each chooses its own."""
    ask_at_s: float = 0.0
    """The swarm is left to itself until then."""
    requests: int = 3
    prompt_tokens: int = 20
    max_tokens: int = 24
    temperature: float = 0.8
    step_s: float = 0.005
    latency_s: float = 0.002
    faults: Sequence[Fault] = ()


@dataclass
class Outcome:
    """What became of one request."""

    asked_at_s: float
    ended_at_s: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    error: str | None = "the request never ended"
    recoveries: int = 0


@dataclass
class Report:
    """What happened. `trace_hash` is the same for the same seed and plan, on any machine."""

    seed: int
    outcomes: list[Outcome]
    spans: list[Span | None]
    sessions_leaked: int
    """Sessions that had not ended, at a stage or at a client, when all requests were over: each holds a KV row."""
    virtual_s: float
    trace: list[str]
    moves: list[tuple[float, int, Span | None]]
    """When which node left which layers for others."""
    known: list[set[int]]
    """Which nodes each node that lives knows of in the end, itself included."""

    @property
    def trace_hash(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()
