"""How the rows of a batch are cut into runs of neighbours. Pure."""

from collections.abc import Sequence


def row_runs(rows: Sequence[int]) -> list[list[int]]:
    """Indices into `rows`, cut so that the rows of each run lie next to each other in the slabs, in rising order.

    A gap is never computed over: that would overwrite what the row in it holds. So the runs are as long as they
    can be, and as many as there are gaps, plus one. Raises ValueError when a row is there twice.
    """
    runs: list[list[int]] = []
    for index in sorted(range(len(rows)), key=rows.__getitem__):
        before = rows[runs[-1][-1]] if runs else None
        if before == rows[index]:
            raise ValueError(f"row {before} is twice in one batch")
        if before is not None and rows[index] == before + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
