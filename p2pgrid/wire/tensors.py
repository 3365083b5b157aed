"""Arrays on the wire: raw little-endian values, the shape known from the message around them."""

import numpy as np
import numpy.typing as npt

from p2pgrid.errors import PeerMisbehaved

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def pack_ints(values: npt.ArrayLike) -> bytes:
    """int32 little-endian; `values` is one-dimensional."""
    return np.asarray(values, dtype="<i4").tobytes()


def unpack_ints(data: bytes, limit: int) -> Ints:
    """`[n]` int32. Raises PeerMisbehaved unless every value is in `[0, limit)`."""
    if len(data) % 4:
        raise PeerMisbehaved(f"{len(data)} bytes are no whole number of int32 values")
    values = np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False)
    if len(data) <= 4:  # a decode step's; numpy's reductions take several times as long
        within = 0 <= int.from_bytes(data, "little", signed=True) < limit
    else:
        within = values.min() >= 0 and values.max() < limit
    if not within:
        raise PeerMisbehaved(f"a token id outside 0…{limit - 1}")
    return values


def pack_floats(values: Floats) -> bytes:
    """float32 little-endian, row-major."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def unpack_floats(data: bytes, rows: int, columns: int) -> Floats:
    """`[rows, columns]` float32. Raises PeerMisbehaved on another size or a value that is not finite."""
    if len(data) != 4 * rows * columns:
        raise PeerMisbehaved(f"{len(data)} bytes are not {rows} rows of {columns} float32 values")
    values = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False).reshape(rows, columns)
    if not np.isfinite(values).all():
        raise PeerMisbehaved("hidden states that are not finite")
    return values
