"""How the rows of a batch, and the positions of a step, are cut into runs of the graph. Pure."""

from collections.abc import Sequence

GAP_MAX = 3
"""Rows in a gap that is computed over: so few more in a run cost less than one more run of the graph."""

QUERY_BLOCK = 32


def row_runs(rows: Sequence[int]) -> list[list[int]]:
    """Indices into `rows`, cut so that the rows of each run lie close to each other in the slabs, in rising order.

    The runs are as long as they can be without a gap of more than `GAP_MAX` rows. Raises ValueError when a row is
    there twice.
    """
    runs: list[list[int]] = []
    for index in sorted(range(len(rows)), key=rows.__getitem__):
        before = rows[runs[-1][-1]] if runs else None
        if before == rows[index]:
            raise ValueError(f"row {before} is twice in one batch")
        if before is not None and rows[index] - before <= GAP_MAX + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def position_runs(n: int, logits: int) -> list[tuple[int, int]]:
    """How a step of `n` positions is cut into runs of the graph: almost always not at all.

    The attention kernel takes queries in blocks of 32, 64, … (twice the head's size); a last block of one query
    would go through the kernel for single rows, whose last bits differ. Nor may one row of logits stand alone.
    """
    if n == 1 or n % QUERY_BLOCK != 1:
        return [(0, n)]
    cut = n - (5 if logits == 4 else 3)
    return [(0, cut), (cut, n)]
