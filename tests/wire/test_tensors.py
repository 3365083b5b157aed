import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.tensors import pack_floats, pack_ints, unpack_floats, unpack_ints


@given(st.lists(st.integers(0, 2**31 - 2), max_size=64))
@settings(max_examples=50, deadline=None)
def test_token_ids_survive_the_wire(values: list[int]) -> None:
    assert unpack_ints(pack_ints(values), limit=2**31 - 1).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_hidden_states_survive_the_wire_bit_for_bit(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32).reshape(2, 3)
    assert unpack_floats(pack_floats(array), 2, 3).tobytes() == array.tobytes()


def test_values_are_little_endian_and_row_major() -> None:
    assert pack_ints([1, 258]).hex() == "0100000002010000"
    transposed = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32).T
    assert pack_floats(transposed).hex() == "0000803f000040400000004000008040"
    assert unpack_floats(pack_floats(transposed), 2, 2).tolist() == [[1.0, 3.0], [2.0, 4.0]]


@pytest.mark.parametrize("values", [[-1], [100], [5, 2**31 - 1]])
def test_a_token_id_outside_the_vocabulary_is_refused(values: list[int]) -> None:
    with pytest.raises(PeerMisbehaved, match="outside"):
        unpack_ints(pack_ints(values), limit=100)


def test_half_a_value_is_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="no whole number"):
        unpack_ints(bytes(7), limit=100)


@pytest.mark.parametrize("nbytes", [0, 20, 23, 25, 28])
def test_another_size_than_the_shape_says_is_refused(nbytes: int) -> None:
    with pytest.raises(PeerMisbehaved, match="are not 2 rows of 3"):
        unpack_floats(bytes(nbytes), 2, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(PeerMisbehaved, match="not finite"):
        unpack_floats(pack_floats(np.array([[0.0, value]], dtype=np.float32)), 1, 2)
