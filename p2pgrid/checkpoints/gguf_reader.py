"""What a GGUF file says of itself: metadata and tensors, read with care.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package does the parsing; this
module is the border that turns whatever it does on a damaged file into one clear `LocalFault`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.wire.manifest import TensorEntry

MAGIC = b"GGUF"
TENSORS_MAX = 16_384
READS_PER_BREATH = 8_192
"""So many reads of the parser, and whoever waits is asked whether to go on."""

T = TypeVar("T")


class _Truncated(Exception):
    """The file ends before what it announces."""


class _CheckedReader(gguf.GGUFReader):
    """The package's reader, which by itself takes what lies past the end of the file for empty arrays.

    That turns a damaged length into an endless loop, so every read is checked here. Reading through
    `frombuffer` instead of slices of a memory map also makes it three times as fast.
    """

    def __init__(self, path: Path, breathe: Callable[[], None]) -> None:
        self._breathe = breathe
        self._reads = 0
        super().__init__(path)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: str | None = None) -> Any:
        self._reads += 1
        if self._reads % READS_PER_BREATH == 0:
            self._breathe()
        kind, start, items = np.dtype(dtype), int(offset), int(count)
        if start + kind.itemsize * items > self.data.nbytes:
            raise _Truncated
        if items == 0:
            return np.empty(0, kind)
        return np.frombuffer(self.data, kind, items, start)


class GgufFile:
    """One GGUF file, its metadata by key and its tensors in file order."""

    def __init__(self, path: Path, breathe: Callable[[], None] = lambda: None) -> None:
        """Raises LocalFault when the file cannot be read or is no whole GGUF file.

        `breathe` is called now and then while the header is parsed, and may raise to stop it.
        """
        self.path = path
        self.nbytes = _check_magic(path)
        try:
            # A wrapped sum of offsets is damage too, not a warning.
            with np.errstate(over="raise"):
                self._reader = _CheckedReader(path, breathe)
                self.tensors = tuple(self._entry(tensor) for tensor in self._reader.tensors)
        except _Truncated as error:
            raise LocalFault(
                f"{path} is truncated: more is announced than its {self.nbytes} bytes; get it again"
            ) from error
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, IndexError, TypeError, ArithmeticError, RecursionError) as error:
            raise LocalFault(f"{path} is a damaged GGUF file ({_short(error)}); get it again") from error
        if len(self.tensors) > TENSORS_MAX:
            raise BadInput(f"{path} has {len(self.tensors)} tensors, over the limit of {TENSORS_MAX}")

    def get(self, key: str, as_type: type[T], default: T | None = None) -> T:
        """The metadata under `key`. Raises LocalFault when it is missing without a default, or of another type."""
        found = self.find(key, as_type)
        if found is None:
            found = default
        if found is None:
            raise LocalFault(f"{self.path} lacks the metadata {key!r}: it is damaged or no model; get it again")
        return found

    def find(self, key: str, as_type: type[T]) -> T | None:
        """The metadata under `key`, None when there is none. Raises LocalFault when it is of another type."""
        value = self._value(key)
        if as_type is float and type(value) is int:
            value = float(value)
        if value is None or type(value) is as_type:
            return value
        raise LocalFault(f"{self.path}: the metadata {key!r} is {type(value).__name__}, not {as_type.__name__}")

    def array(self, key: str, of_type: type[T]) -> tuple[T, ...]:
        """The array under `key`. Raises LocalFault when it is missing or of another type."""
        values = self._value(key)
        if not isinstance(values, list) or any(type(value) is not of_type for value in values):
            raise LocalFault(f"{self.path} lacks the table {key!r}: it is damaged or no model; get it again")
        return tuple(values)

    def whole(self) -> memoryview:
        """All bytes of the file, mapped, not read."""
        mapped: memoryview = self._reader.data.data
        return mapped

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError) as error:
            raise LocalFault(f"{self.path}: damaged metadata {key!r} ({_short(error)}); get the file again") from error

    @staticmethod
    def _entry(tensor: Any) -> TensorEntry:
        return TensorEntry(
            name=tensor.name,
            kind=tensor.tensor_type.name,
            shape=tuple(reversed(tensor.shape.tolist())),
            offset=int(tensor.data_offset),
            nbytes=int(tensor.n_bytes),
        )


def _check_magic(path: Path) -> int:
    """The size of the file in bytes."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            nbytes = path.stat().st_size
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from error
    if magic != MAGIC:
        raise LocalFault(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}; give a .gguf checkpoint")
    return nbytes


def _short(error: Exception) -> str:
    """A foreign error's text in a few words of one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
