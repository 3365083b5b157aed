"""Quantized matrices as the runtime's integer kernels take them, decoded from GGML blocks.

GGML formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (a block is 32 weights of a row,
or 256 for the K formats).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from p2pgrid.errors import LocalFault
from p2pgrid.wire.tensors import Floats

Bytes = npt.NDArray[np.uint8]

BLOCK = 32
"""Weights of one row that share a scale."""

FOUR_BITS = frozenset({"Q4_0", "Q4_1"})
"""GGML types whose codes keep their 4 bits; all other blocks get 8."""

_NIBBLES_PER_BYTE = 2
_ROWS_AT_ONCE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix `[outputs, inputs]`: weight = scale · (code − zero) + offset, all but the code per block."""

    bits: int
    """Of a code: 4 or 8."""
    codes: Bytes
    """`[outputs, inputs / 32, 4 * bits]`; of two 4-bit codes in a byte the first one is the low half."""
    scales: Floats
    """`[outputs, inputs / 32]`."""
    zeros: Bytes | None = None
    """`[outputs, inputs / 32]`, for 8 bits only; None = the middle of the codes, 8 or 128."""
    offsets: Floats | None = None
    """`[outputs, inputs / 32]`; None = 0."""

    @property
    def shape(self) -> tuple[int, int]:
        outputs, blocks, _ = self.codes.shape
        return outputs, blocks * BLOCK

    @property
    def form(self) -> tuple[int, bool, bool]:
        """What two matrices must have in common to be stacked."""
        return self.bits, self.zeros is None, self.offsets is None

    def rows(self, index: npt.NDArray[np.intp]) -> "Blocks":
        return Blocks(
            self.bits,
            self.codes[index],
            self.scales[index],
            None if self.zeros is None else self.zeros[index],
            None if self.offsets is None else self.offsets[index],
        )

    def widened(self) -> "Blocks":
        """The same weights with codes of 8 bits, exactly."""
        if self.bits == 8:
            return self
        return Blocks(8, self._one_a_byte() + np.uint8(128 - 8), self.scales, self.zeros, self.offsets)

    def _one_a_byte(self) -> Bytes:
        """Codes `[outputs, inputs / 32, 32]`."""
        if self.bits == 8:
            return self.codes
        return np.stack((self.codes & 15, self.codes >> 4), axis=-1).reshape(*self.scales.shape, BLOCK)

    def dequantize(self) -> Floats:
        """`[outputs, inputs]` float32."""
        codes = self._one_a_byte()
        zeros = np.float32(2 ** (self.bits - 1)) if self.zeros is None else self.zeros[..., None]
        weights = (codes.astype(np.float32) - zeros) * self.scales[..., None]
        if self.offsets is not None:
            weights += self.offsets[..., None]
        return weights.reshape(self.shape).astype(np.float32, copy=False)


Matrix = Blocks | Floats
"""Float matrices are `[outputs, inputs]` float32 as well."""


def stack(parts: Sequence[Blocks]) -> Blocks:
    """One matrix of all the outputs, in order. The parts have the same `form` and number of inputs."""

    def join(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)

    return Blocks(
        parts[0].bits,
        join([part.codes for part in parts]),
        join([part.scales for part in parts]),
        join([part.zeros for part in parts]),
        join([part.offsets for part in parts]),
    )


def decode(data: Bytes, kind: str, shape: tuple[int, ...], where: str) -> Matrix:
    """A tensor of GGML type `kind` from its bytes in the file.

    F32, F16 and BF16 become float32 of `shape`; Q4_0, Q4_1 and Q8_0 keep their codes and scales exactly; any
    other block format that the gguf package knows is rounded to 8 bits.
    Raises LocalFault that names `where` for an unknown type or a size that does not fit the shape.
    """
    _check_size(data, kind, shape, where)
    if kind == "F32":
        return data.view("<f4").reshape(shape).astype(np.float32)
    if kind == "F16":
        return data.view("<f2").reshape(shape).astype(np.float32)
    if kind == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    rows = data.reshape(shape[0], -1)
    if kind == "Q4_0":
        return _q4(rows, header_bytes=2)
    if kind == "Q4_1":
        return _q4(rows, header_bytes=4)
    if kind == "Q8_0":
        return _q8_0(rows)
    return _rounded(rows, kind, shape[1], where)


def _check_size(data: Bytes, kind: str, shape: tuple[int, ...], where: str) -> None:
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    except KeyError as error:
        raise LocalFault(f"{where} is of type {kind}, which this version cannot read") from error
    whole_blocks = shape[-1] % block == 0 and (block == 1 or shape[-1] % BLOCK == 0)
    if (block > 1 and len(shape) != 2) or not whole_blocks:
        raise LocalFault(f"{where} is of type {kind}, which cannot hold the shape {list(shape)}")
    if data.size != int(np.prod(shape)) // block * block_bytes:
        raise LocalFault(f"{where} has {data.size} bytes, which do not fit the shape {list(shape)}")


def _halves(columns: Bytes) -> Floats:
    """`[rows, blocks]` float32 of `[rows, blocks, 2]` bytes."""
    return np.ascontiguousarray(columns).view("<f2")[..., 0].astype(np.float32)


def _q4(rows: Bytes, header_bytes: int) -> Blocks:
    """Q4_0: scale, and the zero is 8. Q4_1: scale and minimum, written as 8 scales below the offset.

    A block holds its weights j and j + 16 in byte j; the kernels want 2j and 2j + 1.
    """
    blocks = rows.reshape(rows.shape[0], -1, header_bytes + BLOCK // _NIBBLES_PER_BYTE)
    packed = blocks[..., header_bytes:]
    low, high = packed & 15, packed >> 4
    codes = np.concatenate((low[..., 0::2] | low[..., 1::2] << 4, high[..., 0::2] | high[..., 1::2] << 4), axis=-1)
    scales = _halves(blocks[..., 0:2])
    if header_bytes == 2:
        return Blocks(4, codes, scales)
    return Blocks(4, codes, scales, offsets=_halves(blocks[..., 2:4]) + 8 * scales)


def _q8_0(rows: Bytes) -> Blocks:
    blocks = rows.reshape(rows.shape[0], -1, 2 + BLOCK)
    return Blocks(8, blocks[..., 2:] ^ np.uint8(0x80), _halves(blocks[..., 0:2]))


def _rounded(rows: Bytes, kind: str, inputs: int, where: str) -> Blocks:
    """Rows by rows, so that the float32 form of a large matrix never stands in memory."""
    quantization = gguf.GGMLQuantizationType[kind]
    rows_at_once = max(1, _ROWS_AT_ONCE_BYTES // (4 * inputs))
    parts = []
    for start in range(0, len(rows), rows_at_once):
        try:
            weights = gguf.dequantize(rows[start : start + rows_at_once], quantization)
        except (NotImplementedError, ValueError) as error:
            raise LocalFault(f"{where} is of type {kind}, which this version cannot read") from error
        parts.append(round_to_8_bits(weights))
    return stack(parts)


def round_to_8_bits(weights: Floats) -> Blocks:
    """`[outputs, inputs]` float32 to the nearest of 256 values between each block's extremes and zero."""
    blocks = weights.astype(np.float32, copy=False).reshape(weights.shape[0], -1, BLOCK)
    highest = np.maximum(blocks.max(axis=-1), 0)
    lowest = np.minimum(blocks.min(axis=-1), 0)
    scales = np.maximum((highest - lowest) / 255, np.float32(1e-12))
    zeros = np.round(-lowest / scales)
    codes = np.clip(np.round(blocks / scales[..., None]) + zeros[..., None], 0, 255)
    return Blocks(8, codes.astype(np.uint8), scales.astype(np.float32), np.clip(zeros, 0, 255).astype(np.uint8))
