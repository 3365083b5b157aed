"""Stage graphs for onnxruntime, built straight from the checkpoint.

Operators of `com.microsoft`: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
A family of models is an `Architecture`: a description that `StageGraph` follows.

Inputs, for `b` rows (more than one only with `n` = 1): `tokens` int64 `[b, n]` or `hidden` float32 `[b, n, hidden]`;
`last_index` int32 `[b]`, the index of each row's last position; `length` int32, positions of the longest row after
this step; for each layer `past_k_N` and `past_v_N` float32 `[b, kv_heads, context_max, head_dim]`, which the caller
binds to the same memory as `present_k_N`, `present_v_N`; at the last stage `first_wanted` int64 `[1]`, the first of
the step's positions whose logits are wanted. Where a row alone is added up in another order (docs/decisions/0022), also
`computed` int64 `[c]`, the rows that the matrices see: all `b`, and one of them twice where it would be alone; and
`kept` int64 `[b]`, which of those go on: 0, 1, ….
Output: `output` float32, `[b, n, hidden]` or `[b, wanted, vocab]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from p2pgrid.checkpoints.blocks import BLOCK, FOUR_BITS, Blocks, Matrix, stack
from p2pgrid.checkpoints.gguf_import import ROPE_FACTORS
from p2pgrid.checkpoints.weights import SpanWeights
from p2pgrid.engine.kernels import IR_VERSION, MS, OPSET, rows_that_agree
from p2pgrid.errors import LocalFault
from p2pgrid.wire.manifest import Manifest
from p2pgrid.wire.tensors import Floats

_ARRAYS = "arrays"
_ALIGNMENT = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What tells one family of decoder-only models from another, in GGUF's names."""

    qk_rows_interleaved: bool = False
    """GGUF keeps a head's rows of q and k as pairs to rotate; they are put back into two halves."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(qk_rows_interleaved=True),
}


def build_graph(weights: SpanWeights, context_max: int, folder: Path) -> Path:
    """Write the graph of `weights.span` into `folder`, its large arrays beside it; the path of the graph.

    The arrays go to the disk one after another, and the runtime maps them from there: at no time does the span
    stand in memory twice. Raises LocalFault for a model that this version does not know, OSError for a full disk.
    """
    architecture = ARCHITECTURES.get(weights.manifest.architecture)
    if architecture is None:
        raise LocalFault(
            f"models of architecture {weights.manifest.architecture} are not supported, only "
            f"{', '.join(sorted(ARCHITECTURES))}; choose another model"
        )
    with (folder / _ARRAYS).open("wb") as arrays:
        graph = _Builder(weights, architecture, context_max, arrays).build()
    path = folder / "stage.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


class _Builder:
    """Adds nodes one after another; each method returns the name of what it computes."""

    def __init__(self, weights: SpanWeights, architecture: Architecture, context_max: int, arrays: BinaryIO) -> None:
        self._weights = weights
        self._manifest: Manifest = weights.manifest
        self._architecture = architecture
        self._context_max = context_max
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._arrays = arrays
        self._sums: dict[str, str] = {}
        has_four_bits = any(entry.kind in FOUR_BITS for entry in weights.manifest.tensors)
        self._paired = has_four_bits and rows_that_agree(4) == 2

    def build(self) -> ModelProto:
        manifest, span = self._manifest, self._weights.span
        self._input("last_index", TensorProto.INT32, ["b"])
        self._input("length", TensorProto.INT32, [])
        if self._paired:
            self._input("computed", TensorProto.INT64, ["c"])
            self._input("kept", TensorProto.INT64, ["b"])
        hidden, residual = self._embedding() if self._weights.first else self._hidden()
        for layer in range(span.start, span.stop):
            hidden, residual = self._layer(layer, self._weights.layer(layer), hidden, residual)
        if self._weights.last:
            self._head(hidden, residual)
            self._output("output", ["b", "wanted", manifest.vocab])
        else:
            self._node("Add", [self._kept(hidden), self._kept(residual)], "output")
            self._output("output", ["b", "n", manifest.hidden])
        return self._model()

    # ── the parts of a decoder ───────────────────────────────────────────────────────────────────────────

    def _embedding(self) -> tuple[str, str]:
        self._input("tokens", TensorProto.INT64, ["b", "n"])
        tokens = self._computed("tokens")
        table = self._weights.embedding()
        if isinstance(table, Blocks) and table.bits == 8:
            inputs = [self._array("embed.codes", table.codes.reshape(table.shape)), tokens]
            inputs.append(self._array("embed.scales", table.scales))
            if table.zeros is not None:
                inputs.append(self._array("embed.zeros", table.zeros))
            attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
            return self._node("GatherBlockQuantized", inputs, "embedded", MS, **attributes), ""
        floats = table.dequantize() if isinstance(table, Blocks) else table
        return self._node("Gather", [self._array("embed", floats), tokens], "embedded"), ""

    def _hidden(self) -> tuple[str, str]:
        """A skip of zeros, so that the first norm runs in the same kernel, to the same bits, as in mid-graph."""
        self._input("hidden", TensorProto.FLOAT, ["b", "n", self._manifest.hidden])
        hidden = self._computed("hidden")
        return hidden, self._node("Sub", [hidden, hidden], "zeros")

    def _layer(self, layer: int, tensors: Mapping[str, Matrix], hidden: str, residual: str) -> tuple[str, str]:
        def tensor(name: str) -> Matrix:
            if name not in tensors:
                raise LocalFault(f"layer {layer} of the model has no {name}; choose another model")
            return tensors[name]

        at = f"l{layer}"
        normed, residual = self._norm(hidden, residual, tensor("attn_norm.weight"), f"{at}.attn_norm")
        query, key, value = (tensor(f"attn_{which}.weight") for which in ("q", "k", "v"))
        if self._architecture.qk_rows_interleaved:
            query = _halves_apart(query, self._manifest.heads)
            key = _halves_apart(key, self._manifest.kv_heads)
        qkv = self._linear(normed, [query, key, value], f"{at}.qkv")
        rope = self._rope(tensors.get(ROPE_FACTORS))
        attended = self._linear(self._attention(layer, qkv, rope), [tensor("attn_output.weight")], f"{at}.attn_out")
        normed, residual = self._norm(attended, residual, tensor("ffn_norm.weight"), f"{at}.ffn_norm")
        both = self._linear(normed, [tensor("ffn_gate.weight"), tensor("ffn_up.weight")], f"{at}.gate_up")
        gate, up = f"{at}.gate", f"{at}.up"
        self._nodes.append(helper.make_node("Split", [both], [gate, up], axis=-1, num_outputs=2))
        silu = self._node("QuickGelu", [gate], f"{at}.silu", MS, alpha=1.0)
        product = self._node("Mul", [silu, up], f"{at}.product")
        return self._linear(product, [tensor("ffn_down.weight")], f"{at}.ffn_out"), residual

    def _rope(self, factors: Matrix | None) -> tuple[str, str]:
        """Cosines and sines, which all layers share."""
        if "cos" not in self._initializers:
            for name, table in zip(
                ("cos", "sin"), rope_tables(self._manifest, factors, self._context_max), strict=True
            ):
                self._array(name, table)
        return "cos", "sin"

    def _attention(self, layer: int, qkv: str, rope: tuple[str, str]) -> str:
        manifest = self._manifest
        for which in "kv":
            slab: list[int | str] = ["b", manifest.kv_heads, self._context_max, manifest.head_dim]
            self._input(f"past_{which}_{layer}", TensorProto.FLOAT, slab)
            self._output(f"present_{which}_{layer}", slab)
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [self._kept(qkv), "", "", f"past_k_{layer}", f"past_v_{layer}", "last_index", "length", *rope],
                [f"l{layer}.attended", f"present_k_{layer}", f"present_v_{layer}"],
                domain=MS,
                num_heads=manifest.heads,
                kv_num_heads=manifest.kv_heads,
                do_rotary=1,
            )
        )
        return self._computed(f"l{layer}.attended")

    def _head(self, hidden: str, residual: str) -> None:
        """The last norm and the logits, of the wanted positions alone: a head is as large as ten layers."""
        self._input("first_wanted", TensorProto.INT64, [1])
        norm, matrix = self._weights.head()
        last, skipped = self._trailing(hidden, "wanted.x"), self._trailing(residual, "wanted.residual")
        normed, _ = self._norm(last, skipped, norm, "output_norm")
        if self._paired and isinstance(matrix, Blocks) and matrix.bits == 4:
            logits = self._linear(normed, [matrix], "output.computed")
            self._node("Gather", [logits, "kept"], "output")
        else:
            self._linear(self._kept(normed), [matrix], "output")

    def _trailing(self, x: str, out: str) -> str:
        end = self._small("end", np.array([np.iinfo(np.int64).max], np.int64))
        axis = self._small("axis_n", np.array([1], np.int64))
        return self._node("Slice", [x, "first_wanted", end, axis], out)

    def _norm(self, x: str, residual: str, weight: Matrix, out: str) -> tuple[str, str]:
        """RMS norm of `x + residual`, and that sum."""
        if isinstance(weight, Blocks):
            raise LocalFault(f"{out} is quantized, which this version cannot read; choose another model")
        inputs = [self._array(f"{out}.weight", weight)]
        epsilon = self._manifest.norm_eps
        if not residual:
            self._node("SimplifiedLayerNormalization", [x, *inputs], out, epsilon=epsilon, axis=-1, stash_type=1)
            return out, x
        outputs = [out, "", "", f"{out}.sum"]
        node = "SkipSimplifiedLayerNormalization"
        self._nodes.append(helper.make_node(node, [x, residual, *inputs], outputs, domain=MS, epsilon=epsilon))
        return out, f"{out}.sum"

    def _computed(self, x: str) -> str:
        """`x` `[b, …]` with as many rows as the matrices need."""
        return self._node("Gather", [x, "computed"], f"{x}.computed") if self._paired else x

    def _kept(self, x: str) -> str:
        """Of `x` `[c, …]` the `b` rows that were asked for."""
        return self._node("Gather", [x, "kept"], f"{x}.kept") if self._paired else x

    # ── matrices ─────────────────────────────────────────────────────────────────────────────────────────

    def _linear(self, x: str, parts: Sequence[Matrix], out: str) -> str:
        """`x` times the transpose of all the parts, their outputs side by side."""
        quantized = [part for part in parts if isinstance(part, Blocks)]
        if len(quantized) == len(parts) and len({part.form for part in quantized}) == 1:
            return self._blocks(x, stack(quantized) if len(quantized) > 1 else quantized[0], out)
        if not quantized:
            joined = np.concatenate([np.asarray(part) for part in parts])
            return self._node("MatMul", [x, self._array(f"{out}.weight", joined.T)], out)
        pieces = [self._linear(x, [part], f"{out}.{i}") for i, part in enumerate(parts)]
        return self._node("Concat", pieces, out, axis=-1)

    def _blocks(self, x: str, matrix: Blocks, out: str) -> str:
        if not rows_that_agree(matrix.bits):
            matrix = matrix.widened()  # the same weights, for more memory; see docs/decisions/0022
        outputs, inputs = matrix.shape
        operands = [x, self._array(f"{out}.codes", matrix.codes), self._array(f"{out}.scales", matrix.scales)]
        if matrix.zeros is not None:
            operands.append(self._array(f"{out}.zeros", matrix.zeros))
        attributes = {"K": inputs, "N": outputs, "bits": matrix.bits, "block_size": BLOCK, "accuracy_level": 4}
        if matrix.offsets is None:
            return self._node("MatMulNBits", operands, out, MS, **attributes)
        # The integer kernels are fast only without offsets: those go over the sums of the blocks, exactly.
        scaled = self._node("MatMulNBits", operands, f"{out}.scaled", MS, **attributes)
        offsets = self._array(f"{out}.offsets", matrix.offsets.T)
        shift = self._node("MatMul", [self._block_sums(x, inputs), offsets], f"{out}.shift")
        return self._node("Add", [scaled, shift], out)

    def _block_sums(self, x: str, inputs: int) -> str:
        """`[…, inputs / 32]`; as a product, which is quicker than an operator to cut rows up and another to add."""
        if x not in self._sums:
            ones = np.kron(np.eye(inputs // BLOCK), np.ones((BLOCK, 1))).astype(np.float32)
            self._sums[x] = self._node("MatMul", [x, self._small(f"blocks_{inputs}", ones)], f"{x}.sums")
        return self._sums[x]

    # ── plumbing ─────────────────────────────────────────────────────────────────────────────────────────

    def _node(self, op: str, inputs: Sequence[str], out: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [out], domain=domain, **attributes))
        return out

    def _array(self, name: str, array: Array) -> str:
        """An initializer whose values lie in the file of arrays."""
        data = np.ascontiguousarray(array)
        offset = -(-self._arrays.tell() // _ALIGNMENT) * _ALIGNMENT
        self._arrays.seek(offset)
        self._arrays.write(data.data)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", _ARRAYS), ("offset", str(offset)), ("length", str(data.nbytes))):
            tensor.external_data.add(key=key, value=value)
        self._initializers[name] = tensor
        return name

    def _small(self, name: str, array: Array) -> str:
        """An initializer in the graph itself; the same name is always the same values."""
        self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _input(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _output(self, name: str, shape: Sequence[int | str]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _model(self) -> ModelProto:
        initializers = list(self._initializers.values())
        graph = helper.make_graph(self._nodes, "stage", self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _halves_apart(matrix: Matrix, heads: int) -> Matrix:
    """Rows `[heads, pairs, 2]` as `[heads, 2, pairs]`."""
    rows = np.arange(matrix.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return matrix.rows(rows) if isinstance(matrix, Blocks) else matrix[rows]


def rope_tables(manifest: Manifest, factors: Matrix | None, context_max: int) -> tuple[Floats, Floats]:
    """Cosines and sines, each `[context_max, head_dim / 2]` (RoPE, https://arxiv.org/abs/2104.09864)."""
    exponents = np.arange(0, manifest.head_dim, 2, dtype=np.float64) / manifest.head_dim
    frequencies = manifest.rope_theta**-exponents
    if isinstance(factors, np.ndarray):
        frequencies /= factors
    angles = np.arange(context_max, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
