"""A small random llama model as a GGUF file: a real checkpoint in every respect but size and sense."""

from collections.abc import Collection, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = "<note>"
MERGES = (
    "t h", "th e", "i n", "a n", "e r", "o n", "r e", "Ġ t", "Ġ a", "an d", "in g", "Ġ w", "o r", "e n", "l l",
    "h e", "he ll", "hell o", "w or", "wor l", "worl d", "Ã ©", "u s", "us er", "Ċ Ċ", "Ġ Ġ",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5

Floats = npt.NDArray[np.float32]


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE, by byte value."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


def tiny_vocabulary(vocab: int) -> tuple[list[str], list[int]]:
    """`vocab` tokens and their GGUF types: control, one user-defined, 256 bytes, merges, then unused ones."""
    tokens = [*SPECIAL, USER_DEFINED, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [CONTROL] * len(SPECIAL) + [USER] + [NORMAL] * (256 + len(MERGES))
    assert vocab >= len(tokens), f"the vocabulary needs at least {len(tokens)} tokens"
    unused = range(len(tokens), vocab)
    return tokens + [f"[unused{i}]" for i in unused], kinds + [UNUSED] * len(unused)


def packed(values: Floats, kind: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """`values` `[outputs, inputs]` in the bytes of a GGML type.

    The k-quants have no packer in the gguf package: they get random blocks with small, finite scales instead.
    """
    rows, inputs = values.shape
    if kind not in ("Q4_K", "Q6_K"):
        return gguf.quantize(values, Kind[kind]).view(np.uint8)
    block_items, block_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    assert inputs % block_items == 0, f"{kind} needs rows of whole blocks of {block_items}"
    blocks = rng.integers(0, 256, (rows, inputs // block_items, block_bytes), dtype=np.uint8)
    scale = np.float16(1 / 256 / np.sqrt(inputs))
    if kind == "Q4_K":
        blocks[:, :, 0:4] = np.array([scale, scale * np.float16(7)], np.float16).view(np.uint8)
    else:
        blocks[:, :, 208:210] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def write_tiny_gguf(
    path: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 96,
    vocab: int = 320,
    context: int = 512,
    kinds: str | Mapping[str, str] = "Q4_1",
    seed: int = 0,
    tied: bool = True,
    rope_freqs: bool = False,
    drop: Collection[str] = (),
    architecture: str = "llama",
    pre: str = "smollm",
    chat_template: str | None = CHAT_TEMPLATE,
    extra: Mapping[str, str | int | float] | None = None,
) -> Path:
    """Write the model and return `path`. The same arguments give the same bytes.

    `kinds` is the GGML type of every matrix, or types by tensor stem (`attn_q`, `ffn_down`, `token_embd`, `output`)
    with `*` for the rest. Norms are always F32. `drop` leaves tensors out by name; `extra` adds metadata.
    """
    rng = np.random.default_rng(seed)
    by_stem = {"*": kinds} if isinstance(kinds, str) else dict(kinds)
    head_dim = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (hidden,),
            f"blk.{layer}.attn_q.weight": (heads * head_dim, hidden),
            f"blk.{layer}.attn_k.weight": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_v.weight": (kv_heads * head_dim, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, heads * head_dim),
            f"blk.{layer}.ffn_norm.weight": (hidden,),
            f"blk.{layer}.ffn_gate.weight": (ffn, hidden),
            f"blk.{layer}.ffn_up.weight": (ffn, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, ffn),
        }
    shapes["output_norm.weight"] = (hidden,)
    if not tied:
        shapes["output.weight"] = (vocab, hidden)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    _add_tokenizer(writer, vocab, pre, chat_template)
    for key, value in (extra or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, head_dim // 2, dtype=np.float32))
    for name, shape in shapes.items():
        stem = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if len(shape) == 1:
            values = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
            data, kind = values, Kind.F32
        else:
            values = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
            chosen = by_stem.get(stem) or by_stem["*"]
            data, kind = packed(values, chosen, rng), Kind[chosen]
        if name not in drop:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int, pre: str, chat_template: str | None) -> None:
    tokens, kinds = tiny_vocabulary(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
