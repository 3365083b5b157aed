"""A benchmark's document for people."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from p2pgrid.bench import step_parts
from p2pgrid.bench.document import Document, Limit, Ratio, Row, Target
from p2pgrid.cli.console import show, stdout

NUMBERS = ("median", "min", "max", "p99", "at best", "reached", "must be")
WIDTH_MIN = 160
"""Lines that are too long for a terminal break there; no figure is ever cut off."""


def show_document(document: Document) -> None:
    """Tables of rows, ratios and limits, and the notes, on stdout."""
    nodes = "1 node" if document.nodes == 1 else f"{document.nodes} nodes"
    whole = "" if document.complete else ", NOT COMPLETE"
    show(f"{document.scenario}: {nodes}, {document.environment.cores} cores{', quick' * document.quick}{whole}")
    _table(("metric", "system", "median", "min", "max", "p99", "unit", "samples"), [_row(r) for r in document.rows])
    _table(("ratio", "of", "over", "median", "min", "max"), [_ratio(ratio) for ratio in document.ratios])
    _table(("limit", "system", "at best", "unit", "reached", "what"), [_limit(limit) for limit in document.limits])
    _table(("target", "of", "over", "must be", "reached", "met"), [_target(target) for target in document.targets])
    if document.scenario in step_parts.SCENARIOS and (parts := step_parts.table(document.rows)):
        _table(*parts)
    for note in document.notes:
        show(f"· {note}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in NUMBERS else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=max(stdout.width, WIDTH_MIN)).print(table)


def _row(row: Row) -> tuple[str, ...]:
    samples = f"{len(row.samples)}" + (f" ({row.thrown_out} thrown out)" if row.thrown_out else "")
    p99 = "" if row.p99 is None else _number(row.p99)
    return row.metric, row.system, _number(row.median), _number(row.min), _number(row.max), p99, row.unit, samples


def _ratio(ratio: Ratio) -> tuple[str, ...]:
    figures = (f"{value:.2f}" for value in (ratio.median, ratio.min, ratio.max))
    return ratio.metric, ratio.system, _other(ratio.system, ratio.baseline), *figures


def _limit(limit: Limit) -> tuple[str, ...]:
    return limit.metric, limit.system, _number(limit.limit), limit.unit, f"{limit.share:.0%}", limit.what


def _target(target: Target) -> tuple[str, ...]:
    reached = "" if target.reached is None else _number(target.reached)
    bound = f"{'≥' if target.must == 'at_least' else '≤'} {_number(target.bound)}"
    over = _other(target.system, target.baseline)
    return target.metric, target.system, over, bound, reached, "yes" if target.met else "NO"


def _other(system: str, baseline: str) -> str:
    return "itself" if baseline == system else baseline


def _number(value: float) -> str:
    """Four significant digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
