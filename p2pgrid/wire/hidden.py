"""Hidden states on the wire, in one of three formats; docs/protocols/stage-1.md has the layout byte by byte.

Hidden states of language models have a few channels hundreds of times larger than the rest ("massive activations",
https://arxiv.org/abs/2402.17762), which would take all 8 bits of their block. So `int8` keeps each row's largest four
apart (as https://arxiv.org/abs/2208.07339 does by column) and quantizes the rest in blocks.
"""

from typing import assert_never

import numpy as np
import numpy.typing as npt

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.messages import WireFormat
from p2pgrid.wire.tensors import Floats, pack_floats, unpack_floats

FP16_MAX = 65504.0
BLOCK = 32
"""Channels that share one scale."""
OUTLIERS = 4
"""Channels of each row that travel in fp16 beside the blocks."""
COLUMNS_MAX = 65_536
"""Outliers are named by 16 bits."""

_CODE_MAX = 127.0
_SCALE_UP = np.float32((1 + 2**-10) / _CODE_MAX)
_SCALE_MIN = np.float32(2**-24)
"""Rounded to fp16, `peak * _SCALE_UP + _SCALE_MIN` is never below peak / 127: nothing is cut off or divided by 0."""


def pack_hidden(hidden: Floats, form: WireFormat) -> tuple[WireFormat, bytes]:
    """`[n, h]` float32 in `form`, or in fp32 where a value is beyond fp16; with the format it became."""
    match form:
        case "fp32":
            packed = None
        case "fp16":
            packed = _pack_fp16(hidden)
        case "int8":
            packed = _pack_int8(hidden)
        case _:
            assert_never(form)
    return ("fp32", pack_floats(hidden)) if packed is None else (form, packed)


def unpack_hidden(data: bytes, form: WireFormat, rows: int, columns: int) -> Floats:
    """`[rows, columns]` float32, which may be read-only.

    Raises PeerMisbehaved on another size, a value that is not finite, or outliers that are not named in rising order.
    """
    match form:
        case "fp32":
            return unpack_floats(data, rows, columns)
        case "fp16":
            return _unpack_fp16(data, rows, columns)
        case "int8":
            return _unpack_int8(data, rows, columns)
        case _:
            assert_never(form)


def _pack_fp16(hidden: Floats) -> bytes | None:
    # Two reductions instead of one of |x|, which would be a copy. Written so that NaN fails too.
    if hidden.size and not (hidden.max() <= FP16_MAX and hidden.min() >= -FP16_MAX):
        return None
    return hidden.astype("<f2").tobytes()


def _unpack_fp16(data: bytes, rows: int, columns: int) -> Floats:
    if len(data) != 2 * rows * columns:
        raise PeerMisbehaved(f"{len(data)} bytes are not {rows} rows of {columns} fp16 values")
    values = np.frombuffer(data, dtype="<f2").astype(np.float32).reshape(rows, columns)
    if not np.isfinite(values).all():
        raise PeerMisbehaved("hidden states that are not finite")
    return values


def _pack_int8(hidden: Floats) -> bytes | None:
    rows, columns = hidden.shape
    if columns > COLUMNS_MAX:
        return None
    blocks = -(-columns // BLOCK)
    rest = np.zeros((rows, blocks * BLOCK), dtype=np.float32)
    rest[:, :columns] = hidden
    size = np.abs(rest)
    outliers = _take_largest(size, min(OUTLIERS, columns))
    values = np.take_along_axis(hidden, outliers, axis=1)
    peaks = size.reshape(rows, blocks, BLOCK).max(axis=2)
    scales32 = peaks * _SCALE_UP + _SCALE_MIN
    # `size` has lost its outliers, so both are asked. Written so that NaN fails too.
    if rows and not (np.abs(values).max(initial=0) <= FP16_MAX and scales32.max(initial=0) <= FP16_MAX):
        return None
    np.put_along_axis(rest, outliers, 0, axis=1)
    scales = scales32.astype("<f2")
    rest = rest.reshape(rows, blocks, BLOCK)
    rest /= scales.astype(np.float32)[:, :, np.newaxis]
    codes = np.rint(rest, out=rest).astype(np.int8).reshape(rows, blocks * BLOCK)[:, :columns]
    return b"".join(
        (scales.tobytes(), outliers.astype("<u2").tobytes(), values.astype("<f2").tobytes(), codes.tobytes())
    )


def _take_largest(size: Floats, count: int) -> npt.NDArray[np.intp]:
    """`[rows, count]`, rising: the channels of the largest values of each row, which become -1 in `size`."""
    every = np.arange(len(size))
    found = np.empty((len(size), count), dtype=np.intp)
    for place in range(count):  # four passes of a vectorized argmax are faster than one partition
        found[:, place] = size.argmax(axis=1)
        size[every, found[:, place]] = -1
    found.sort(axis=1)
    return found


def _unpack_int8(data: bytes, rows: int, columns: int) -> Floats:
    blocks, count = -(-columns // BLOCK), min(OUTLIERS, columns)
    row_bytes = 2 * blocks + 4 * count + columns
    if len(data) != rows * row_bytes:
        raise PeerMisbehaved(f"{len(data)} bytes are not {rows} rows of {columns} int8 values in blocks of {BLOCK}")
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.cumsum([2 * blocks * rows, 2 * count * rows, 2 * count * rows])
    scale_bytes, outlier_bytes, value_bytes, code_bytes = np.split(raw, ends)
    scales = scale_bytes.view("<f2").astype(np.float32).reshape(rows, blocks, 1)
    outliers = outlier_bytes.view("<u2").astype(np.intp).reshape(rows, count)
    values = value_bytes.view("<f2").astype(np.float32).reshape(rows, count)
    if not (np.isfinite(scales).all() and np.isfinite(values).all()):
        raise PeerMisbehaved("hidden states that are not finite")
    if (np.diff(outliers, axis=1) <= 0).any() or outliers.max(initial=0) >= columns:
        raise PeerMisbehaved("outliers of hidden states that do not rise, or of no channel")
    hidden = np.zeros((rows, blocks * BLOCK), dtype=np.float32)
    hidden[:, :columns] = code_bytes.view(np.int8).reshape(rows, columns)
    np.multiply(in_blocks := hidden.reshape(rows, blocks, BLOCK), scales, out=in_blocks)
    np.put_along_axis(hidden, outliers, values, axis=1)
    return np.ascontiguousarray(hidden[:, :columns])
