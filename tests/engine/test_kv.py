import mmap
import os

import numpy as np
import psutil
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
                assert array.shape == (1, 2, 64, 16) and not array.any()
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


def test_rows_cost_no_memory_until_they_are_written() -> None:
    me = psutil.Process(os.getpid())
    before_bytes = me.memory_info().rss
    slabs = KvSlabs(layers=10, rows=64, kv_heads=3, context_max=8192, head_dim=64)
    assert me.memory_info().rss - before_bytes < 4 * 2**20
    slabs.load(63, 8000, np.ones((10, 2, 3, 64, 64), np.float32))
    assert slabs.save(63, 8000, 8064).all()
    assert me.memory_info().rss - before_bytes < 12 * 2**20
    slabs.close()


@given(row=st.integers(0, 2), start=st.integers(0, 60), n=st.integers(1, 64))
def test_what_was_saved_is_loaded_into_another_row_and_nowhere_else(row: int, start: int, n: int) -> None:
    slabs = KvSlabs(layers=2, rows=3, kv_heads=2, context_max=64, head_dim=16)
    stop = min(start + n, 64)
    block = np.random.default_rng(n).random((2, 2, 2, stop - start, 16)).astype(np.float32)
    slabs.load(row, start, block)
    assert np.array_equal(slabs.save(row, start, stop), block)
    assert block.nbytes == (stop - start) * slabs.position_bytes
    inside = np.zeros((3, 64), bool)
    inside[row, start:stop] = True
    for layer in range(2):
        for array in slabs.layer(layer, 0, 3):
            assert np.array_equal(array.any(axis=(1, 3)), inside)


def test_close_may_be_called_twice() -> None:
    slabs = KvSlabs(layers=1, rows=2, kv_heads=1, context_max=64, head_dim=16)
    slabs.close()
    slabs.close()
    slabs.release(0)
