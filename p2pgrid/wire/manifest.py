"""What a model is: its shape, its tensors and where they lie, its tokenizer; named by its own hash."""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pgrid.ids import ModelId
from p2pgrid.wire.fields import Digest, Offset

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class TensorEntry(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the checkpoint file, as it lies there."""

    name: str
    kind: str
    """GGML type: `F32`, `Q4_1`, …"""
    shape: tuple[int, ...]
    """Row-major; a matrix is `[outputs, inputs]`."""
    offset: Offset
    """Bytes from the start of the file."""
    nbytes: Offset


class Manifest(msgspec.Struct, frozen=True):
    """All that a stage or a client must know of a model. Canonical JSON; its SHA-256 is the model id.

    The model's name is not in it: the same file under two names is one model.
    """

    format: Literal[1]
    architecture: str
    layers: Annotated[int, Meta(ge=1, le=1024)]
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    ffn: Positive
    vocab: Positive
    context: Positive
    rope_theta: float
    norm_eps: float
    weights: Digest
    """SHA-256 of the checkpoint file."""
    weights_bytes: Offset
    tokenizer: Digest
    """SHA-256 of the tokenizer blob (`TokenizerData`)."""
    tensors: tuple[TensorEntry, ...]
    parts: dict[str, Digest]
    """SHA-256 over the bytes of each part's tensors, in name order; parts are `embed`, `head`, `layer.N`."""

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")

    @property
    def id(self) -> ModelId:
        return ModelId(hashlib.sha256(self.to_bytes()).hexdigest())


def manifest_from_bytes(data: bytes) -> Manifest:
    """Raises msgspec.DecodeError or msgspec.ValidationError when `data` is no manifest."""
    return msgspec.json.decode(data, type=Manifest)


class TokenizerData(msgspec.Struct, frozen=True):
    """The tokenizer and chat template of a checkpoint. Canonical JSON, like the manifest."""

    format: Literal[1]
    model: str
    """`gpt2` = byte-level BPE."""
    pre: str
    """Name of the pre-tokenizer: `smollm`, `llama-bpe`, …"""
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    """GGUF token types: 1 normal, 3 control, 4 user-defined, …"""
    merges: tuple[str, ...]
    bos: int | None
    eos: int | None
    stops: tuple[int, ...]
    """Token ids that end an answer."""
    add_bos: bool
    chat_template: str | None

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")
