"""Hidden states in the formats of the wire."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.hidden import BLOCK, FP16_MAX, OUTLIERS, pack_hidden, unpack_hidden
from p2pgrid.wire.messages import WireFormat
from p2pgrid.wire.tensors import Floats, pack_floats

FORMS: tuple[WireFormat, ...] = ("fp32", "fp16", "int8")


@st.composite
def hidden_states(draw: st.DrawFn) -> Floats:
    """Normal values, a few channels far beyond them, as models have them; sometimes rows of zeros or tiny values."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-9, 3, (rows, 1))
    for channel in draw(st.lists(st.integers(0, columns - 1), max_size=6)):
        values[:, channel] = draw(st.sampled_from([24_494.0, -24_494.0, FP16_MAX, 0.0, 1e-8]))
    values[0] *= draw(st.sampled_from([0.0, 1.0]))
    return values.clip(-FP16_MAX, FP16_MAX).astype(np.float32)


def through(hidden: Floats, form: WireFormat) -> Floats:
    used, data = pack_hidden(hidden, form)
    assert used == form
    return unpack_hidden(data, used, *hidden.shape)


@given(hidden_states())
@settings(max_examples=100, deadline=None)
def test_fp32_is_exact_and_the_layout_of_old(hidden: Floats) -> None:
    assert pack_hidden(hidden, "fp32") == ("fp32", pack_floats(hidden))
    assert (through(hidden, "fp32") == hidden).all()


@given(hidden_states())
@settings(max_examples=100, deadline=None)
def test_fp16_is_off_by_half_a_unit_in_the_last_place_at_most(hidden: Floats) -> None:
    _, exponent = np.frexp(np.abs(hidden))
    unit = np.ldexp(np.float32(1), np.maximum(exponent - 11, -24))  # 11 bits, down to the subnormals
    assert (np.abs(through(hidden, "fp16") - hidden) <= unit / 2).all()


@given(hidden_states())
@settings(max_examples=200, deadline=None)
def test_int8_is_off_by_half_a_step_of_the_block_and_keeps_the_largest_channels(hidden: Floats) -> None:
    rows, columns = hidden.shape
    off = np.abs(through(hidden, "int8") - hidden)
    for row in range(rows):
        kept = np.argsort(-np.abs(hidden[row]), kind="stable")[:OUTLIERS]
        rest = np.abs(hidden[row])
        rest[kept] = 0
        for start in range(0, columns, BLOCK):
            # 2**-9 and 2**-23: the scale is an fp16 that is never below a 127th of the largest value.
            scale = rest[start : start + BLOCK].max() / 127 * (1 + 2**-9) + 2**-23
            in_block = [channel for channel in range(start, min(start + BLOCK, columns)) if channel not in kept]
            assert (off[row, in_block] <= scale / 2 * (1 + 1e-5)).all()
        exact = np.abs(hidden[row, kept].astype(np.float16).astype(np.float32) - hidden[row, kept])
        # Of equally large channels another may be the one that is kept.
        assert (off[row, kept] <= np.maximum(exact, rest.max() / 127 + 2**-23)).all()


def test_int8_takes_little_more_than_a_quarter_of_the_bytes() -> None:
    _, data = pack_hidden(np.ones((128, 576), dtype=np.float32), "int8")
    assert len(data) == 128 * (2 * 18 + 4 * 4 + 576)
    assert len(data) < 0.273 * 4 * 128 * 576


def test_int8_lies_on_the_wire_as_the_page_says() -> None:
    """Two rows of 33 channels: scales, then the channels of outliers, then their values, then codes."""
    hidden = np.zeros((2, 33), dtype=np.float32)
    hidden[0, [3, 7, 20, 32]] = [-100.0, 24_494.0, 90.0, 80.0]
    hidden[0, 0] = 12.7
    hidden[1, 10:14] = 5.0
    used, data = pack_hidden(hidden, "int8")
    scales = struct.unpack_from("<4e", data, 0)
    assert used == "int8"
    assert scales[0] == pytest.approx(0.1, rel=2e-3)
    assert struct.unpack_from("<8H", data, 8) == (3, 7, 20, 32, 10, 11, 12, 13)
    assert struct.unpack_from("<8e", data, 24) == (-100.0, 24_496.0, 90.0, 80.0, 5.0, 5.0, 5.0, 5.0)
    assert struct.unpack_from("<66b", data, 40) == (127, *[0] * 65)
    assert len(data) == 106


@pytest.mark.parametrize("form", ["fp16", "int8"])
@pytest.mark.parametrize("value", [65_505.0, -65_536.0, 1e30, float("inf"), float("nan")])
def test_what_fp16_cannot_hold_goes_as_fp32(form: WireFormat, value: float) -> None:
    hidden = np.ones((3, 64), dtype=np.float32)
    hidden[1, 40] = value
    assert pack_hidden(hidden, form) == ("fp32", pack_floats(hidden))


def test_many_large_channels_go_as_fp32_only_when_their_scale_is_beyond_fp16() -> None:
    hidden = np.full((1, 64), 1e6, dtype=np.float32)
    hidden[0, :4] = 60_000.0  # smaller than the rest: not among the outliers, which overflow
    assert pack_hidden(hidden, "int8")[0] == "fp32"
    hidden[:] = 60_000.0
    assert through(hidden, "int8") == pytest.approx(hidden, rel=5e-3)


def test_rows_do_not_change_one_another() -> None:
    """A step has the same bits whether it was sent with others or alone."""
    hidden = np.random.default_rng(3).standard_normal((7, 576)).astype(np.float32)
    for form in FORMS:
        together = through(hidden, form)
        alone = np.concatenate([through(hidden[row : row + 1], form) for row in range(7)])
        assert (together == alone).all()


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=300), rows=st.integers(1, 3), columns=st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_finite_values_of_that_shape_or_misbehaviour(
    form: WireFormat, data: bytes, rows: int, columns: int
) -> None:
    try:
        hidden = unpack_hidden(data, form, rows, columns)
    except PeerMisbehaved:
        return
    assert hidden.shape == (rows, columns)
    assert hidden.dtype == np.float32
    assert np.isfinite(hidden).all()


@pytest.mark.parametrize("form", FORMS)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_bytes_that_were_tampered_with_are_finite_values_or_misbehaviour(form: WireFormat, data: st.DataObject) -> None:
    hidden = np.random.default_rng(5).standard_normal((2, 40)).astype(np.float32)
    used, packed = pack_hidden(hidden, form)
    at = data.draw(st.integers(0, len(packed) - 1))
    tampered = packed[:at] + data.draw(st.binary(min_size=1, max_size=1)) + packed[at + 1 :]
    try:
        assert np.isfinite(unpack_hidden(tampered, used, 2, 40)).all()
    except PeerMisbehaved:
        return


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_another_shape_are_refused(form: WireFormat) -> None:
    used, data = pack_hidden(np.ones((2, 64), dtype=np.float32), form)
    for wrong, rows, columns in ((data[:-1], 2, 64), (data + b"\0", 2, 64), (data, 3, 64), (data, 2, 65), (b"", 2, 64)):
        with pytest.raises(PeerMisbehaved, match="bytes are not"):
            unpack_hidden(wrong, used, rows, columns)


@pytest.mark.parametrize("nan", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"])
def test_fp16_values_and_scales_that_are_not_finite_are_refused(nan: bytes) -> None:
    with pytest.raises(PeerMisbehaved, match="finite"):
        unpack_hidden(bytes(62) + nan, "fp16", 1, 32)
    _, data = pack_hidden(np.ones((1, 32), dtype=np.float32), "int8")
    for at in (0, 10):  # the scale; the first outlier's value
        with pytest.raises(PeerMisbehaved, match="finite"):
            unpack_hidden(data[:at] + nan + data[at + 2 :], "int8", 1, 32)


@pytest.mark.parametrize("channels", [(0, 1, 2, 32), (0, 1, 1, 2), (3, 2, 1, 0), (0, 1, 2, 65_535)])
def test_outliers_of_no_channel_or_named_twice_are_refused(channels: tuple[int, ...]) -> None:
    _, data = pack_hidden(np.ones((1, 32), dtype=np.float32), "int8")
    with pytest.raises(PeerMisbehaved, match="outliers"):
        unpack_hidden(data[:2] + struct.pack("<4H", *channels) + data[10:], "int8", 1, 32)
