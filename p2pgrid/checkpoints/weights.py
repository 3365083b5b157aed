"""The weights of a span: only its own tensors are read, and each is checked before it is used."""

import hashlib
import io
from pathlib import Path

import numpy as np

from p2pgrid.checkpoints.blocks import Bytes, Matrix, decode
from p2pgrid.checkpoints.gguf_import import Advance, tensors_of
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.wire.manifest import Manifest, TensorEntry


class SpanWeights:
    """Reads the parts of a checkpoint file that one span needs, one part at a time.

    A part is read whole, its SHA-256 is compared with the manifest's, and the tensors are decoded from those
    very bytes. Nothing is kept: who asks twice reads twice.
    """

    def __init__(self, path: Path, manifest: Manifest, span: Span, advance: Advance | None = None) -> None:
        """Raises LocalFault when the file is missing or has another size than the manifest says."""
        self.manifest = manifest
        self.span = span
        self._path = path
        self._advance = advance or (lambda done, total: None)
        self._done_bytes = 0
        self._total_bytes = sum(entry.nbytes for part in self._part_names() for entry in self._entries(part))
        try:
            size = path.stat().st_size
        except OSError as error:
            raise LocalFault(f"cannot read {path}: {error.strerror}; pull the model again") from error
        if size != manifest.weights_bytes:
            raise LocalFault(
                f"{path} has {size} bytes instead of {manifest.weights_bytes}; delete it and pull the model again"
            )

    @property
    def first(self) -> bool:
        return self.span.start == 0

    @property
    def last(self) -> bool:
        return self.span.stop == self.manifest.layers

    def layer(self, layer: int) -> dict[str, Matrix]:
        """The tensors of one layer of the span, by their names without `blk.N.`: `attn_q.weight`, …

        Models with scaled rotary frequencies have `rope_freqs.weight` `[head_dim / 2]` in each layer: what the
        frequencies are divided by.
        """
        prefix = f"blk.{layer}."
        return {name.removeprefix(prefix): tensor for name, tensor in self._read(f"layer.{layer}").items()}

    def embedding(self) -> Matrix:
        """`[vocab, hidden]`."""
        return self._read("embed")["token_embd.weight"]

    def head(self) -> tuple[Matrix, Matrix]:
        """The last norm `[hidden]` and the output matrix `[vocab, hidden]`, which may be the embedding."""
        part = self._read("head")
        norm = part.pop("output_norm.weight")
        [matrix] = part.values()
        return norm, matrix

    def _part_names(self) -> list[str]:
        layers = [f"layer.{layer}" for layer in range(self.span.start, self.span.stop)]
        return ["embed"] * self.first + layers + ["head"] * self.last

    def _entries(self, part: str) -> list[TensorEntry]:
        try:
            return tensors_of(part, self.manifest.tensors)
        except KeyError as error:
            raise LocalFault(f"{self._path}: the model has no {error.args[0]}; choose another model") from error

    def _read(self, part: str) -> dict[str, Matrix]:
        entries = self._entries(part)
        digest = hashlib.sha256()
        data: dict[str, Bytes] = {}
        try:
            with self._path.open("rb", buffering=0) as file:
                for entry in entries:
                    data[entry.name] = self._read_tensor(file, entry)
                    digest.update(data[entry.name].data)
        except OSError as error:
            raise LocalFault(f"cannot read {self._path}: {error.strerror}") from error
        if digest.hexdigest() != self.manifest.parts.get(part):
            raise LocalFault(f"{self._path}: {part} is damaged; delete the file and pull the model again")
        tensors = {}
        for entry in entries:
            where = f"{self._path}: {entry.name}"
            tensors[entry.name] = decode(data.pop(entry.name), entry.kind, entry.shape, where)
        self._done_bytes += sum(entry.nbytes for entry in entries)
        self._advance(self._done_bytes, self._total_bytes)
        return tensors

    def _read_tensor(self, file: io.FileIO, entry: TensorEntry) -> Bytes:
        if entry.offset + entry.nbytes > self.manifest.weights_bytes:
            raise LocalFault(f"{self._path}: the manifest places {entry.name} behind its end; choose another model")
        data = np.empty(entry.nbytes, np.uint8)
        file.seek(entry.offset)
        if file.readinto(data.data) != entry.nbytes:
            raise LocalFault(f"{self._path} ends inside {entry.name}; delete it and pull the model again")
        return data
