"""From a GGUF file to the two small documents that name and describe a model.

Paid once, when a model is imported: nodes read the manifest and go straight to the tensors' offsets.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from p2pgrid.checkpoints.gguf_reader import GgufFile
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.wire.manifest import Manifest, TensorEntry, TokenizerData

Advance = Callable[[int, int], None]
"""Report progress: `(done, total)` bytes; total 0 = not known yet. May raise to stop the work."""

ARCHITECTURE = "llama"
ROPE_FACTORS = "rope_freqs.weight"
HASH_PIECE_BYTES = 4 * 1024 * 1024

END_TOKENS = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<|endofturn|>", "</s>")
)
"""Control tokens that end an answer even where the metadata names only one of them."""
CONTROL_TOKEN = 3


def read_gguf(path: Path, advance: Advance) -> tuple[Manifest, TokenizerData]:
    """The manifest and the tokenizer of a checkpoint. The same file gives the same bytes of both.

    Raises LocalFault when the file is damaged, truncated or no GGUF, and BadInput when it is a whole model
    that this version cannot run.
    """
    file = GgufFile(path, breathe=lambda: advance(0, 0))
    shape = _Shape(file)
    tensors = {entry.name: entry for entry in file.tensors}
    _check_tensors(path, tensors, shape.expected(tied="output.weight" not in tensors))
    tokenizer = _tokenizer(file)
    if len(tokenizer.tokens) != shape.vocab:
        raise LocalFault(f"{path} has {len(tokenizer.tokens)} tokens for {shape.vocab} embeddings; it is damaged")
    weights, parts = _hashes(file, shape.layers, advance)
    manifest = Manifest(
        format=1,
        architecture=ARCHITECTURE,
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        ffn=shape.ffn,
        vocab=shape.vocab,
        context=shape.context,
        rope_theta=shape.rope_theta,
        norm_eps=shape.norm_eps,
        weights=weights,
        weights_bytes=file.nbytes,
        tokenizer=hashlib.sha256(tokenizer.to_bytes()).hexdigest(),
        tensors=file.tensors,
        parts=parts,
    )
    # Structs check their limits when decoded, not when made: what leaves here must be readable everywhere.
    try:
        return msgspec.convert(msgspec.to_builtins(manifest), Manifest), tokenizer
    except msgspec.ValidationError as error:
        raise BadInput(f"{path} is outside the limits of this version: {error}") from error


def part_names(layers: int) -> list[str]:
    return ["embed", *(f"layer.{layer}" for layer in range(layers)), "head"]


def tensors_of(part: str, tensors: Iterable[TensorEntry]) -> list[TensorEntry]:
    """The tensors of one part of the model, in name order, which is the order its SHA-256 takes them in.

    `embed` is the embedding; `layer.N` is what the layer needs, with the rotary factors that all layers share;
    `head` is the last norm with the output matrix, which is the embedding where the two are tied.
    """
    by_name = {entry.name: entry for entry in tensors}
    if part == "embed":
        names = ["token_embd.weight"]
    elif part == "head":
        names = ["output_norm.weight", "output.weight" if "output.weight" in by_name else "token_embd.weight"]
    else:
        prefix = f"blk.{part.removeprefix('layer.')}."
        names = [name for name in by_name if name.startswith(prefix) or name == ROPE_FACTORS]
    return [by_name[name] for name in sorted(names)]


class _Shape:
    """The sizes of a llama model, from its metadata."""

    def __init__(self, file: GgufFile) -> None:
        architecture = file.get("general.architecture", str)
        if architecture != ARCHITECTURE:
            raise BadInput(
                f"{file.path} is a model of architecture {architecture!r}; this version runs {ARCHITECTURE!r}"
            )
        for key, plain in (("llama.expert_count", 0), ("llama.rope.scaling.type", "none")):
            value = file.find(key, type(plain))
            if value not in (None, plain):
                raise BadInput(
                    f"{file.path} has {key} = {value!r}, which this version cannot run; choose another model"
                )
        self.layers = file.get("llama.block_count", int)
        self.hidden = file.get("llama.embedding_length", int)
        self.heads = file.get("llama.attention.head_count", int)
        self.kv_heads = file.get("llama.attention.head_count_kv", int, self.heads)
        self.ffn = file.get("llama.feed_forward_length", int)
        self.context = file.get("llama.context_length", int)
        if not (1 <= self.layers <= 1024 and 1 <= self.kv_heads <= self.heads <= self.hidden):
            raise LocalFault(f"{file.path} says it has {self.layers} layers and {self.heads} heads; it is damaged")
        self.head_dim = file.get("llama.attention.key_length", int, self.hidden // self.heads)
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise BadInput(
                f"{file.path} has {self.heads} heads of {self.head_dim} for {self.kv_heads} KV heads, which cannot run"
            )
        if file.get("llama.rope.dimension_count", int, self.head_dim) != self.head_dim:
            raise BadInput(f"{file.path} rotates only a part of each head, which this version cannot run")
        self.rope_theta = file.get("llama.rope.freq_base", float, 10_000.0)
        self.norm_eps = file.get("llama.attention.layer_norm_rms_epsilon", float)
        if not (0 < self.rope_theta < math.inf and 0 < self.norm_eps < math.inf):
            raise LocalFault(f"{file.path}: rope base {self.rope_theta}, norm epsilon {self.norm_eps}: it is damaged")
        embedding = next((entry for entry in file.tensors if entry.name == "token_embd.weight"), None)
        self.vocab = embedding.shape[0] if embedding else file.get("llama.vocab_size", int)
        self.rope_factors = any(entry.name == ROPE_FACTORS for entry in file.tensors)

    def expected(self, tied: bool) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model must have, with its shape, and none besides."""
        queries, values = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocab, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        if not tied:
            shapes["output.weight"] = (self.vocab, self.hidden)
        if self.rope_factors:
            shapes[ROPE_FACTORS] = (self.head_dim // 2,)
        for layer in range(self.layers):
            shapes |= {
                f"blk.{layer}.attn_norm.weight": (self.hidden,),
                f"blk.{layer}.attn_q.weight": (queries, self.hidden),
                f"blk.{layer}.attn_k.weight": (values, self.hidden),
                f"blk.{layer}.attn_v.weight": (values, self.hidden),
                f"blk.{layer}.attn_output.weight": (self.hidden, queries),
                f"blk.{layer}.ffn_norm.weight": (self.hidden,),
                f"blk.{layer}.ffn_gate.weight": (self.ffn, self.hidden),
                f"blk.{layer}.ffn_up.weight": (self.ffn, self.hidden),
                f"blk.{layer}.ffn_down.weight": (self.hidden, self.ffn),
            }
        return shapes


def _check_tensors(path: Path, tensors: dict[str, TensorEntry], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in tensors:
            raise LocalFault(f"{path} lacks the tensor {name}; it is damaged or a part of a split model")
        if tensors[name].shape != shape:
            found = "x".join(map(str, tensors[name].shape))
            raise LocalFault(
                f"{path}: the tensor {name} is {found} instead of {'x'.join(map(str, shape))}; it is damaged"
            )
    for name in tensors:
        if name not in expected:
            raise BadInput(f"{path} has a tensor {name!r}, which this version would not use; choose another model")


def _tokenizer(file: GgufFile) -> TokenizerData:
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise BadInput(f"{file.path} has a tokenizer of model {model!r}; this version reads 'gpt2' (byte-level BPE)")
    tokens = file.array("tokenizer.ggml.tokens", str)
    kinds = file.array("tokenizer.ggml.token_type", int)
    eos = file.find("tokenizer.ggml.eos_token_id", int)
    named = (eos, *(file.find(f"tokenizer.ggml.{end}_token_id", int) for end in ("eot", "eom")))
    stops = {token for token in named if token is not None}
    stops |= {
        i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind == CONTROL_TOKEN and token in END_TOKENS
    }
    bos = file.find("tokenizer.ggml.bos_token_id", int)
    if len(kinds) != len(tokens) or any(not 0 <= token < len(tokens) for token in (*stops, bos or 0)):
        raise LocalFault(
            f"{file.path}: the tokenizer's tables do not fit each other; the file is damaged, get it again"
        )
    return TokenizerData(
        format=1,
        model=model,
        pre=file.get("tokenizer.ggml.pre", str, "gpt-2"),
        tokens=tokens,
        kinds=kinds,
        merges=file.array("tokenizer.ggml.merges", str),
        bos=bos,
        eos=eos,
        stops=tuple(sorted(stops)),
        add_bos=file.get("tokenizer.ggml.add_bos_token", bool, False),
        chat_template=file.find("tokenizer.chat_template", str),
    )


def _hashes(file: GgufFile, layers: int, advance: Advance) -> tuple[str, dict[str, str]]:
    """SHA-256 of the whole file, and of each part of the model."""
    whole = file.whole()
    pieces = {"": [whole]}
    for part in part_names(layers):
        entries = tensors_of(part, file.tensors)
        pieces[part] = [whole[entry.offset : entry.offset + entry.nbytes] for entry in entries]
    total = sum(len(piece) for some in pieces.values() for piece in some)
    done = 0
    digests = {}
    for part, some in pieces.items():
        digest = hashlib.sha256()
        for piece in some:
            for start in range(0, len(piece), HASH_PIECE_BYTES):
                digest.update(piece[start : start + HASH_PIECE_BYTES])
                done += len(piece[start : start + HASH_PIECE_BYTES])
                advance(done, total)
        digests[part] = digest.hexdigest()
    return digests.pop(""), digests
