"""What is said of a list of samples. Pure arithmetic."""

import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from p2pgrid.bench.document import Document, Ratio, Row, Target

P99_SAMPLES_MIN = 100
"""With fewer samples the 99th percentile is only another name for the largest one."""
LIMIT = "limit"
"""What a target names as its baseline when it means the share of a limit."""


def p99(samples: Sequence[float]) -> float | None:
    """As `largest_but_1_percent`; None with fewer than 100 samples."""
    return largest_but_1_percent(samples) if len(samples) >= P99_SAMPLES_MIN else None


def largest_but_1_percent(samples: Sequence[float]) -> float:
    """The smallest sample that at least 99 % of the samples do not exceed: of fewer than 100 the largest."""
    return sorted(samples)[math.ceil(0.99 * len(samples)) - 1]


def row(system: str, metric: str, unit: str, samples: Sequence[float], thrown_out: int = 0) -> Row:
    """A row of at least one sample."""
    return Row(
        system,
        metric,
        unit,
        tuple(samples),
        statistics.median(samples),
        min(samples),
        max(samples),
        p99(samples),
        thrown_out,
    )


def ratio(
    metric: str, system: str, baseline: str, ours: Mapping[int, float], theirs: Mapping[int, float], what: str = ""
) -> Ratio | None:
    """Ours over theirs, for the pairs that both have; None when there is no such pair."""
    pairs = [pair for pair in sorted(ours) if theirs.get(pair)]
    samples = tuple(ours[pair] / theirs[pair] for pair in pairs)
    if not samples:
        return None
    return Ratio(metric, system, baseline, samples, statistics.median(samples), min(samples), max(samples), what)


def judged(target: Target, document: Document) -> Target:
    """The target with what the document says of it."""
    reached = _reached(target, document)
    at_least = target.must == "at_least"
    met = reached is not None and (reached >= target.bound if at_least else reached <= target.bound)
    return msgspec.structs.replace(target, reached=reached, met=met)


def _reached(target: Target, document: Document) -> float | None:
    if target.baseline == LIMIT:
        found = [one.share for one in document.limits if (one.metric, one.system) == (target.metric, target.system)]
    elif target.baseline:
        wanted = (target.metric, target.system, target.baseline)
        found = [one.median for one in document.ratios if (one.metric, one.system, one.baseline) == wanted]
    else:
        rows = [one for one in document.rows if (one.metric, one.system) == (target.metric, target.system)]
        found = [one.min if target.must == "at_least" else one.max for one in rows]
    return found[0] if found else None
