"""Did anything get worse? Answered from ratios alone, which hold on any machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from p2pgrid.bench.document import Ratio
from p2pgrid.bench.plots import split_metric
from p2pgrid.bench.report import read_documents
from p2pgrid.errors import BadInput


class Compared(NamedTuple):
    """What must be the same of two ratios to say anything about them."""

    scenario: str
    nodes: int
    model: str
    metric: str
    system: str
    baseline: str


def compare(old: Path, new: Path, threshold: float) -> list[str]:
    """A line for each ratio of both files whose median got worse by more than `threshold`, a share of the old one.

    For `…_per_s` and `speedup` more is better, for other `…_s`, `…_s_per_token` and `…_bytes` less; of any other
    metric nobody knows, and it is left out. Raises BadInput for a bad file, or when the two have no ratio in common.
    """
    if not 0 <= threshold < float("inf"):
        raise BadInput(f"--threshold {threshold}: give a share from 0 on, such as 0.1 for 10 %")
    before, after = _ratios(old), _ratios(new)
    common = [key for key in after if key in before and before[key].median > 0]
    if not common:
        raise BadInput(f"{old} and {new} have no ratios in common: measure the same scenarios, nodes and model again")
    return [
        f"{key.scenario}: {key.metric} of {key.system} / {key.baseline} got worse by {loss:.0%}:"
        f" {before[key].median:.3f} → {after[key].median:.3f}"
        for key in common
        if (loss := _loss(key.metric, before[key].median, after[key].median)) > threshold
    ]


def _ratios(path: Path) -> Mapping[Compared, Ratio]:
    """Those that can be compared; of one that is there more than once the last."""
    return {
        Compared(document.scenario, document.nodes, document.environment.model, r.metric, r.system, r.baseline): r
        for document in read_documents(path)
        for r in document.ratios
        if _more_is_better(r.metric) is not None
    }


def _loss(metric: str, before: float, after: float) -> float:
    """By which share of `before` it got worse; negative when it got better."""
    return (before - after if _more_is_better(metric) else after - before) / before


def _more_is_better(metric: str) -> bool | None:
    """None when the name does not say."""
    name, _ = split_metric(metric)
    if name.endswith("_per_s") or name == "speedup":
        return True
    return False if name.endswith(("_s", "_s_per_token", "_bytes")) else None
