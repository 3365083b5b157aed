"""KV slabs: the memory of a stage's sessions, taken page by page as positions are filled, given back by row."""

import contextlib
import math
import mmap
import platform
import sys

import numpy as np

from p2pgrid.errors import LocalFault, PeerMisbehaved
from p2pgrid.wire.tensors import Floats

_VALUE_BYTES = 4


def _address_space_alone() -> int:
    """The flag by which a map promises no memory (MAP_NORESERVE); Python knows its name only from 3.13 on."""
    on_linux = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    return getattr(mmap, "MAP_NORESERVE", 0x4000 if on_linux else 0)


_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _address_space_alone()


def whole_pages(context_max: int, kv_heads: int, head_dim: int) -> int:
    """The smallest number of positions, `context_max` or more, with which a row is a whole number of pages."""
    position_bytes = kv_heads * head_dim * _VALUE_BYTES
    unit = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, position_bytes)
    return -(-context_max // unit) * unit


class KvSlabs:
    """For each layer of a span two tensors, keys and values: `[rows, kv_heads, context_max, head_dim]` float32.

    Each lies in an anonymous private map of its own: address space, until positions are written. `context_max` must
    come from `whole_pages`.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, context_max: int, head_dim: int) -> None:
        """Raises LocalFault when the machine has not that much address space."""
        self.rows = rows
        self._row_bytes = kv_heads * context_max * head_dim * _VALUE_BYTES
        if self._row_bytes % mmap.PAGESIZE:
            raise ValueError(f"a KV row of {self._row_bytes} bytes is no whole number of pages")
        self._position_shape = (kv_heads, head_dim)
        self.position_bytes = 2 * layers * kv_heads * head_dim * _VALUE_BYTES
        self._maps: list[mmap.mmap] = []
        self._arrays: list[Floats] = []
        for _ in range(2 * layers):
            try:
                slab = mmap.mmap(-1, rows * self._row_bytes, flags=_MAP_FLAGS)
            except OSError as error:
                raise LocalFault(
                    f"no memory for the KV rows of {rows} sessions of {context_max} positions; "
                    "lower the number of sessions or the context"
                ) from error
            # A huge page for each head's first few positions would cost more than the positions themselves.
            # Kernels without huge pages refuse the advice, and need none.
            with contextlib.suppress(OSError):
                slab.madvise(mmap.MADV_NOHUGEPAGE)
            self._maps.append(slab)
            self._arrays.append(np.frombuffer(slab, np.float32).reshape(rows, kv_heads, context_max, head_dim))

    def layer(self, layer: int, first: int, rows: int = 1) -> tuple[Floats, Floats]:
        """Keys and values of `rows` rows from `first` on, `[rows, kv_heads, context_max, head_dim]`.

        `layer` counts from the span's start.
        """
        keys, values = self._arrays[2 * layer : 2 * layer + 2]
        return keys[first : first + rows], values[first : first + rows]

    def save(self, row: int, start: int, stop: int) -> Floats:
        """A copy of positions `[start, stop)` of a row: `[layers, 2, kv_heads, stop - start, head_dim]`."""
        kv_heads, head_dim = self._position_shape
        block: Floats = np.empty((len(self._arrays), kv_heads, stop - start, head_dim), np.float32)
        for at, array in zip(block, self._arrays, strict=True):
            at[...] = array[row, :, start:stop]
        return block.reshape(-1, 2, *block.shape[1:])

    def load(self, row: int, start: int, block: Floats) -> None:
        """Put what `save` gave into positions from `start` on."""
        stop = start + block.shape[3]
        for at, array in zip(block.reshape(-1, *block.shape[2:]), self._arrays, strict=True):
            array[row, :, start:stop] = at

    def unpack(self, data: bytes, positions: int) -> Floats:
        """What `save` gave for so many positions, from its bytes. Raises PeerMisbehaved for another size."""
        if len(data) != positions * self.position_bytes:
            raise PeerMisbehaved(f"{len(data)} bytes are not the keys and values of {positions} positions")
        kv_heads, head_dim = self._position_shape
        return np.frombuffer(data, "<f4").reshape(-1, 2, kv_heads, positions, head_dim)

    def release(self, row: int) -> None:
        """Give the row's pages back to the machine; it reads as zeros then."""
        for slab in self._maps:
            slab.madvise(mmap.MADV_DONTNEED, row * self._row_bytes, self._row_bytes)

    def close(self) -> None:
        """Give everything back; nothing that `layer` returned may be used any more. Idempotent."""
        for slab in self._maps:
            slab.madvise(mmap.MADV_DONTNEED)
        self._arrays.clear()
        self._maps.clear()
