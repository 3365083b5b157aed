from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.engine.row_runs import GAP_MAX, row_runs

batches = st.lists(st.integers(0, 40), unique=True, max_size=32)


@given(batches)
def test_every_row_is_in_exactly_one_run(rows: list[int]) -> None:
    assert sorted(index for run in row_runs(rows) for index in run) == list(range(len(rows)))


@given(batches)
def test_the_rows_of_a_run_are_near_and_no_run_could_be_longer(rows: list[int]) -> None:
    runs = [[rows[index] for index in run] for run in row_runs(rows)]
    assert all(0 < right - left <= GAP_MAX + 1 for run in runs for left, right in pairwise(run))
    assert all(left[-1] + GAP_MAX + 1 < right[0] for left, right in pairwise(runs))


@given(batches.filter(bool), st.data())
def test_a_row_that_is_there_twice_is_the_callers_bug(rows: list[int], data: st.DataObject) -> None:
    with pytest.raises(ValueError, match="twice"):
        row_runs([*rows, data.draw(st.sampled_from(rows))])
