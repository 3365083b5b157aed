"""What a benchmark prints: one document a scenario. docs/benchmarks/schema.json is made from these structs."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0)]


class Row(msgspec.Struct, frozen=True):
    """One metric of one system. `samples` are those that count, in the order in which they were taken."""

    system: str
    """`swarm`, `one_process`, `star`, `llama_cpp`, or what a scenario names besides."""
    metric: str
    """`decode_tokens_per_s`, …; with `@512` or `@8` behind it for a prompt's length or a number of clients."""
    unit: str
    samples: tuple[float, ...]
    median: float
    min: float
    max: float
    p99: float | None = None
    """None with fewer than 100 samples."""
    thrown_out: int = 0
    """Samples that do not count, because something else kept the machine busy."""


class Ratio(msgspec.Struct, frozen=True):
    """`system` over `baseline`, pair by pair: each pair was measured one right after the other.

    Or two figures of one system over each other: then `baseline` is the system itself, and `what` names them.
    """

    metric: str
    system: str
    baseline: str
    samples: tuple[float, ...]
    median: float
    min: float
    max: float
    what: str = ""
    """`numerator / denominator` where they are not both `metric`."""


class Limit(msgspec.Struct, frozen=True):
    """What the machine could do at best, measured in the same run, and the share of it that `system` reached."""

    metric: str
    system: str
    limit: float
    unit: str
    share: Share
    what: str
    """How the limit comes about, in one line."""


class Target(msgspec.Struct, frozen=True):
    """What a figure must be, and whether it was."""

    metric: str
    system: str
    baseline: str
    """Of the ratio that is meant; `limit` for the share of a limit; empty for the row itself."""
    must: Literal["at_least", "at_most"]
    bound: float
    reached: float | None
    """The median of a ratio, the share of a limit, the worst sample of a row; None when it was not measured."""
    met: bool


class Environment(msgspec.Struct, frozen=True):
    """Where and from what the figures come."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    """`unknown` outside a checkout; `-dirty` behind it when the checkout was changed."""
    command: str
    started_at: str
    """ISO 8601, UTC."""
    model: str
    foreign_cpu_share_max: float
    """The largest share of the machine that other processes took during a sample."""


class Document(msgspec.Struct, frozen=True):
    """One scenario's figures."""

    format: Literal[1]
    scenario: str
    nodes: int
    quick: bool
    complete: bool
    """False when it was interrupted or failed; the rows are those that it had by then."""
    environment: Environment
    rows: tuple[Row, ...]
    ratios: tuple[Ratio, ...]
    limits: tuple[Limit, ...]
    notes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
