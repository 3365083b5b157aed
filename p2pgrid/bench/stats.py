"""What is said of a list of samples. Pure arithmetic."""

import math
import statistics
from collections.abc import Mapping, Sequence

from p2pgrid.bench.document import Ratio, Row

P99_SAMPLES_MIN = 100
"""With fewer samples the 99th percentile is only another name for the largest one."""


def p99(samples: Sequence[float]) -> float | None:
    """The smallest sample that at least 99 % of the samples do not exceed; None with fewer than 100 of them."""
    if len(samples) < P99_SAMPLES_MIN:
        return None
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
    metric: str, system: str, baseline: str, ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Ratio | None:
    """Ours over theirs, for the pairs that both have; None when there is no such pair."""
    pairs = [pair for pair in sorted(ours) if theirs.get(pair)]
    samples = tuple(ours[pair] / theirs[pair] for pair in pairs)
    if not samples:
        return None
    return Ratio(metric, system, baseline, samples, statistics.median(samples), min(samples), max(samples))
