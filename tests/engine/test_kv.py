import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.engine.kv import KvSlabs, whole_pages


@given(context=st.integers(1, 10_000), kv_heads=st.integers(1, 16), half=st.integers(1, 128))
def test_rows_are_whole_pages_and_no_longer_than_needed(context: int, kv_heads: int, half: int) -> None:
    positions = whole_pages(context, kv_heads, 2 * half)
    assert positions >= context
    assert positions * kv_heads * 2 * half * 4 % mmap.PAGESIZE == 0
    assert positions - context < mmap.PAGESIZE


def test_a_released_row_reads_as_zeros_and_its_neighbours_stay() -> None:
    slabs = KvSlabs(layers=2, rows=3, kv_heads=2, context_max=64, head_dim=16)
    for row in range(3):
        for layer in range(2):
            for array in slabs.layer(layer, row):
                assert array.shape == slabs.row_shape and not array.any()
                array[...] = 1 + row
    slabs.release(1)
    found = [[np.unique(array).tolist() for layer in range(2) for array in slabs.layer(layer, row)] for row in range(3)]
    assert found == [4 * [[1.0]], 4 * [[0.0]], 4 * [[3.0]]]


def test_keys_and_values_of_a_layer_are_apart() -> None:
    slabs = KvSlabs(layers=2, rows=1, kv_heads=1, context_max=64, head_dim=16)
    for number, array in enumerate(array for layer in range(2) for array in slabs.layer(layer, 0)):
        array[...] = number
    assert [float(array.mean()) for layer in range(2) for array in slabs.layer(layer, 0)] == [0, 1, 2, 3]


def test_a_row_that_is_no_whole_number_of_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="pages"):
        KvSlabs(layers=1, rows=1, kv_heads=1, context_max=63, head_dim=16)


def test_close_may_be_called_twice() -> None:
    slabs = KvSlabs(layers=1, rows=2, kv_heads=1, context_max=64, head_dim=16)
    slabs.close()
    slabs.close()
    slabs.release(0)
