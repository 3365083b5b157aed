"""Which format hidden states travel in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.wire_choice import choose_form
from p2pgrid.wire.messages import WireFormat

bandwidths = st.none() | st.floats(0, 1e12)


@given(st.sampled_from(["fp32", "fp16", "int8"]), bandwidths)
def test_what_was_asked_for_is_what_travels(asked: WireFormat, bandwidth_bytes_s: float | None) -> None:
    assert choose_form(asked, bandwidth_bytes_s) == asked


@pytest.mark.parametrize(
    ("bandwidth_bytes_s", "form"),
    [(None, "fp32"), (25e6, "fp32"), (24.9e6, "fp16"), (6e6, "fp16"), (5.9e6, "int8"), (0.0, "int8")],
)
def test_auto_goes_by_what_the_link_carries(bandwidth_bytes_s: float | None, form: WireFormat) -> None:
    assert choose_form("auto", bandwidth_bytes_s) == form


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_a_faster_link_never_gets_fewer_bytes(one: float, other: float) -> None:
    by_size = ("int8", "fp16", "fp32")
    slow, fast = sorted((one, other))
    assert by_size.index(choose_form("auto", slow)) <= by_size.index(choose_form("auto", fast))
