from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest

from p2pgrid.checkpoints.blocks import Blocks, decode, round_to_8_bits, stack
from p2pgrid.checkpoints.weights import SpanWeights
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.wire.manifest import Manifest
from tests.engine.stages import tiny_model
from tests.tiny_gguf import packed


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Manifest]:
    return tiny_model(tmp_path, kinds={"*": "Q4_1", "token_embd": "Q8_0"})


def matrix(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a random matrix `[24, 256]`, and its values by the gguf package."""
    rng = np.random.default_rng(seed)
    data = packed(rng.standard_normal((24, 256)).astype(np.float32), kind, rng)
    return data.reshape(-1), gguf.dequantize(data, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_widened_codes_are_the_same_weights(kind: str) -> None:
    data, values = matrix(kind)
    found = decode(data, kind, values.shape, "a matrix")
    assert isinstance(found, Blocks)
    assert found.widened().bits == 8
    assert np.array_equal(found.widened().dequantize(), found.dequantize())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_float_types_become_float32_exactly(kind: str) -> None:
    data, values = matrix(kind)
    found = decode(data, kind, (24, 256), "a tensor")
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    assert np.array_equal(found, values)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_codes_and_scales_are_kept_exactly(kind: str, bits: int) -> None:
    data, values = matrix(kind)
    found = decode(data, kind, (24, 256), "a tensor")
    assert isinstance(found, Blocks) and found.bits == bits and found.shape == (24, 256)
    assert np.allclose(found.dequantize(), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q4_K", "Q6_K", "TQ1_0", "MXFP4"])
def test_other_types_are_rounded_to_the_nearest_of_256_values(kind: str) -> None:
    data, values = matrix(kind)
    found = decode(data, kind, (24, 256), "a tensor")
    assert isinstance(found, Blocks) and found.bits == 8
    blocks = values.reshape(24, -1, 32)
    spread = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    errors = np.abs(found.dequantize() - values).reshape(24, -1, 32).max(-1)
    assert (errors <= 1.01 * spread / 255).all()


def test_rounding_keeps_zeros_and_constant_blocks() -> None:
    values = np.zeros((3, 64), np.float32)
    values[1] = 5
    values[2] = -5
    assert np.allclose(round_to_8_bits(values).dequantize(), values, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_rows_can_be_reordered_and_matrices_stacked(kind: str) -> None:
    one, other = (decode(matrix(kind, seed)[0], kind, (24, 256), "a tensor") for seed in (1, 2))
    assert isinstance(one, Blocks) and isinstance(other, Blocks)
    order = np.random.default_rng(0).permutation(24)
    assert np.array_equal(one.rows(order).dequantize(), one.dequantize()[order])
    assert np.array_equal(stack([one, other]).dequantize(), np.concatenate((one.dequantize(), other.dequantize())))


@pytest.mark.parametrize("kind", ["Q9_9", "Q8_K", "I32", "IQ1_S_R4"])
def test_an_unknown_type_is_named(kind: str) -> None:
    block, block_bytes = (256, 292) if kind == "Q8_K" else (1, 4)
    with pytest.raises(LocalFault, match=f"somewhere is of type {kind}"):
        decode(np.zeros(24 * 256 // block * block_bytes, np.uint8), kind, (24, 256), "somewhere")


@pytest.mark.parametrize(
    ("kind", "shape", "nbytes"),
    [("Q4_1", (24, 250), 4800), ("Q4_1", (256,), 160), ("F32", (24, 256), 100), ("Q8_0", (24, 256), 100)],
)
def test_sizes_that_do_not_fit_the_shape_are_refused(kind: str, shape: tuple[int, ...], nbytes: int) -> None:
    with pytest.raises(LocalFault, match="shape"):
        decode(np.zeros(nbytes, np.uint8), kind, shape, "a tensor")


def test_a_span_has_its_own_layers_and_ends(model: tuple[Path, Manifest]) -> None:
    weights = SpanWeights(*model, Span(0, 4))
    assert weights.first and weights.last
    embedding, (norm, output) = weights.embedding(), weights.head()
    assert isinstance(embedding, Blocks) and isinstance(output, Blocks) and isinstance(norm, np.ndarray)
    assert np.array_equal(embedding.dequantize(), output.dequantize())
    assert norm.shape == (64,)
    assert set(weights.layer(2)) == {
        *(f"attn_{name}.weight" for name in ("norm", "q", "k", "v", "output")),
        *(f"ffn_{name}.weight" for name in ("norm", "gate", "up", "down")),
    }
    assert not SpanWeights(*model, Span(1, 3)).first and not SpanWeights(*model, Span(1, 3)).last


def test_only_the_spans_own_bytes_are_read(model: tuple[Path, Manifest]) -> None:
    heard: list[tuple[int, int]] = []
    weights = SpanWeights(*model, Span(1, 3), lambda done, total: heard.append((done, total)))
    weights.layer(1)
    weights.layer(2)
    layer_bytes = sum(entry.nbytes for entry in model[1].tensors if entry.name.startswith("blk.1."))
    assert heard == [(layer_bytes, 2 * layer_bytes), (2 * layer_bytes, 2 * layer_bytes)]


@pytest.mark.parametrize(
    ("tensor", "part"),
    [("token_embd.weight", "embed"), ("blk.2.ffn_up.weight", "layer.2"), ("output_norm.weight", "head")],
)
def test_a_damaged_part_is_refused_and_the_others_still_read(
    model: tuple[Path, Manifest], tensor: str, part: str
) -> None:
    path, manifest = model
    [entry] = [entry for entry in manifest.tensors if entry.name == tensor]
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.nbytes // 2] ^= 1
    path.write_bytes(data)
    weights = SpanWeights(path, manifest, Span(0, 4))
    reads = {"embed": weights.embedding, "layer.1": lambda: weights.layer(1), "head": weights.head}
    reads |= {"layer.2": lambda: weights.layer(2)}
    for name, read in reads.items():
        # The output matrix of this model is its embedding, so damage to that hurts the head as well.
        if name == part or (part, name) == ("embed", "head"):
            with pytest.raises(LocalFault, match=rf"{path}: {name} is damaged"):
                read()
        else:
            read()


def test_a_truncated_or_missing_file_is_refused(model: tuple[Path, Manifest]) -> None:
    path, manifest = model
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LocalFault, match=rf"{path} has {manifest.weights_bytes - 1} bytes"):
        SpanWeights(path, manifest, Span(0, 4))
    path.unlink()
    with pytest.raises(LocalFault, match=rf"cannot read {path}"):
        SpanWeights(path, manifest, Span(0, 4))


def test_a_file_cut_short_after_it_was_opened_is_refused(model: tuple[Path, Manifest]) -> None:
    path, manifest = model
    weights = SpanWeights(path, manifest, Span(0, 4))
    path.write_bytes(path.read_bytes()[: manifest.weights_bytes // 2])
    with pytest.raises(LocalFault, match="ends inside"):
        for layer in range(4):
            weights.layer(layer)


def test_a_manifest_that_points_behind_the_file_takes_no_memory(model: tuple[Path, Manifest]) -> None:
    path, manifest = model
    far = tuple(msgspec.structs.replace(entry, nbytes=2**60) for entry in manifest.tensors)
    with pytest.raises(LocalFault, match="behind its end"):
        SpanWeights(path, msgspec.structs.replace(manifest, tensors=far), Span(0, 4)).layer(0)


def test_a_manifest_without_a_needed_tensor_is_refused(model: tuple[Path, Manifest]) -> None:
    path, manifest = model
    some = tuple(entry for entry in manifest.tensors if entry.name != "output_norm.weight")
    with pytest.raises(LocalFault, match=r"no output_norm\.weight"):
        SpanWeights(path, msgspec.structs.replace(manifest, tensors=some), Span(0, 4))
