"""A llama forward pass in plain float32 numpy, as an opinion that owes nothing to the graphs."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class LlamaReference:
    """The whole model from a GGUF file, in the file's own order: q and k rotate pairs of neighbours."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)

        def field(key: str) -> int | float:
            return reader.fields[f"llama.{key}"].contents()

        self._tensors = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }
        self._layers = int(field("block_count"))
        self._heads = int(field("attention.head_count"))
        self._kv_heads = int(field("attention.head_count_kv"))
        self._theta = float(field("rope.freq_base"))
        self._eps = float(field("attention.layer_norm_rms_epsilon"))

    def logits(self, tokens: npt.ArrayLike) -> Floats:
        """`[n, vocab]` after each of the tokens `[n]`."""
        tensors = self._tensors
        x = tensors["token_embd.weight"][np.asarray(tokens)]
        for layer in range(self._layers):
            x = self._layer(x, lambda name, layer=layer: tensors[f"blk.{layer}.{name}.weight"])
        return (
            self._norm(x, tensors["output_norm.weight"]) @ tensors.get("output.weight", tensors["token_embd.weight"]).T
        )

    def _layer(self, x, weight):
        normed = self._norm(x, weight("attn_norm"))
        query, key, value = (
            (normed @ weight(f"attn_{which}").T).reshape(len(x), heads, -1).swapaxes(0, 1)
            for which, heads in (("q", self._heads), ("k", self._kv_heads), ("v", self._kv_heads))
        )
        group = self._heads // self._kv_heads
        key, value = self._rotate(key).repeat(group, axis=0), value.repeat(group, axis=0)
        scores = self._rotate(query) @ key.swapaxes(1, 2) / np.sqrt(key.shape[-1])
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = shares / shares.sum(axis=-1, keepdims=True) @ value
        x = x + attended.swapaxes(0, 1).reshape(len(x), -1) @ weight("attn_output").T
        normed = self._norm(x, weight("ffn_norm"))
        gate = normed @ weight("ffn_gate").T
        return x + (gate / (1 + np.exp(-gate)) * (normed @ weight("ffn_up").T)) @ weight("ffn_down").T

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self._eps) * weight

    def _rotate(self, x: Floats) -> Floats:
        """`[heads, n, head_dim]`, pairs `(2i, 2i + 1)`."""
        frequencies = self._theta ** -(np.arange(0, x.shape[-1], 2) / x.shape[-1])
        frequencies = frequencies / self._tensors.get("rope_freqs.weight", np.ones(1))
        angles = np.arange(x.shape[1])[:, None] * frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)
