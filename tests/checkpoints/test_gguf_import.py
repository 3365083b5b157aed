import hashlib
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.checkpoints.gguf_import import part_names, read_gguf, tensors_of
from p2pgrid.errors import BadInput, LocalFault, P2pgridError
from p2pgrid.wire.manifest import Manifest, manifest_from_bytes
from tests.tiny_gguf import write_tiny_gguf


def quiet(done: int, total: int) -> None:
    pass


def imported(path: Path) -> Manifest:
    return read_gguf(path, quiet)[0]


def test_the_manifest_says_what_the_model_is(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", layers=3, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=320)
    manifest, tokenizer = read_gguf(path, quiet)
    assert (manifest.layers, manifest.hidden, manifest.heads, manifest.kv_heads) == (3, 64, 4, 2)
    assert (manifest.head_dim, manifest.ffn, manifest.vocab, manifest.context) == (16, 96, 320, 512)
    assert manifest.rope_theta == 10_000.0
    assert manifest.norm_eps == pytest.approx(1e-5)
    assert manifest.weights == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.weights_bytes == path.stat().st_size
    assert manifest.tokenizer == hashlib.sha256(tokenizer.to_bytes()).hexdigest()
    assert tokenizer.stops == (0, 2), "both <|endoftext|> and <|im_end|> end an answer"


def test_shapes_are_row_major_and_offsets_lead_to_the_bytes(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", kinds={"*": "F32", "ffn_down": "Q8_0"})
    entries = {entry.name: entry for entry in imported(path).tensors}
    assert entries["blk.0.ffn_gate.weight"].shape == (96, 64)
    assert entries["blk.0.attn_k.weight"].shape == (32, 64)
    down = entries["blk.0.ffn_down.weight"]
    assert (down.kind, down.shape, down.nbytes) == ("Q8_0", (64, 96), 64 * 96 // 32 * 34)
    norm = entries["blk.1.attn_norm.weight"]
    values = struct.unpack("<64f", path.read_bytes()[norm.offset : norm.offset + norm.nbytes])
    assert 0.9 < sum(values) / 64 < 1.1, "norm weights lie around one"


@pytest.mark.parametrize("tied", [True, False])
def test_each_part_is_the_hash_of_its_tensors_in_name_order(tmp_path: Path, tied: bool) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", layers=2, tied=tied, rope_freqs=True)
    data, manifest = path.read_bytes(), imported(path)
    entries = {entry.name: entry for entry in manifest.tensors}
    head = ["output_norm.weight", "token_embd.weight"] if tied else ["output.weight", "output_norm.weight"]
    layer = [*sorted(name for name in entries if name.startswith("blk.1.")), "rope_freqs.weight"]
    for part, names in {"embed": ["token_embd.weight"], "head": head, "layer.1": layer}.items():
        assert [entry.name for entry in tensors_of(part, manifest.tensors)] == names
        digest = hashlib.sha256()
        for name in names:
            digest.update(data[entries[name].offset : entries[name].offset + entries[name].nbytes])
        assert manifest.parts[part] == digest.hexdigest()
    assert list(manifest.parts) == part_names(2)


def test_the_same_file_gives_the_same_model_id_and_another_file_another(tmp_path: Path) -> None:
    first = imported(write_tiny_gguf(tmp_path / "a.gguf"))
    again = imported(write_tiny_gguf(tmp_path / "b.gguf"))
    other = imported(write_tiny_gguf(tmp_path / "c.gguf", seed=1))
    assert first.to_bytes() == again.to_bytes()
    assert first.id == again.id != other.id
    assert manifest_from_bytes(first.to_bytes()) == first


def test_progress_ends_at_its_total_and_can_stop_the_work(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    seen: list[tuple[int, int]] = []
    read_gguf(path, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > path.stat().st_size

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_gguf(path, stop)


def test_a_truncated_file_is_told_so_wherever_it_ends(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for nbytes in (5, 20, 40, 300, 3_000, len(whole) // 2, len(whole) - 1_000):
        path.write_bytes(whole[:nbytes])
        with pytest.raises(LocalFault, match=r"cut\.gguf is truncated.*get it again"):
            read_gguf(path, quiet)


@pytest.mark.parametrize("data", [b"", b"GG", b"<html>not found</html>"])
def test_a_file_that_is_no_gguf_is_told_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(data)
    with pytest.raises(LocalFault, match="is not a GGUF file"):
        read_gguf(path, quiet)


def test_a_missing_file_and_a_directory_are_told_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(LocalFault, match="cannot read"):
            read_gguf(path, quiet)


def test_a_damaged_length_does_not_make_the_reader_run_for_ever(tmp_path: Path) -> None:
    data = write_tiny_gguf(tmp_path / "m.gguf").read_bytes()
    key = b"tokenizer.ggml.token_type"
    length_at = data.index(key) + len(key) + 4 + 4
    path = tmp_path / "long.gguf"
    path.write_bytes(data[:length_at] + struct.pack("<Q", 2**62) + data[length_at + 8 :])
    with pytest.raises(LocalFault, match="truncated"):
        read_gguf(path, quiet)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", drop={"blk.2.ffn_up.weight"})
    with pytest.raises(LocalFault, match=r"lacks the tensor blk\.2\.ffn_up\.weight"):
        read_gguf(path, quiet)


def test_a_missing_embedding_is_named(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", drop={"token_embd.weight"})
    with pytest.raises(LocalFault, match=r"lacks the tensor token_embd\.weight"):
        read_gguf(path, quiet)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "m.gguf", extra={"llama.attention.key_length": 32, "llama.rope.dimension_count": 32}
    )
    with pytest.raises(LocalFault, match=r"blk\.0\.attn_q\.weight is 64x64 instead of 128x64"):
        read_gguf(path, quiet)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), 0.0, -1.0])
def test_sizes_that_are_no_numbers_are_damage(tmp_path: Path, eps: float) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", extra={"llama.attention.layer_norm_rms_epsilon": eps})
    with pytest.raises(LocalFault, match=r"norm epsilon .*damaged"):
        read_gguf(path, quiet)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'.*runs 'llama'"),
        ({"extra": {"llama.expert_count": 8}}, "llama.expert_count = 8"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type = 'yarn'"),
    ],
)
def test_what_this_version_cannot_run_is_refused_by_name(tmp_path: Path, options: dict[str, object], told: str) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=told):
        read_gguf(path, quiet)


DAMAGES_MAX = 80
_whole: list[bytes] = []


def _tiny() -> bytes:
    if not _whole:
        with tempfile.TemporaryDirectory() as folder:
            _whole.append(write_tiny_gguf(Path(folder) / "m.gguf", layers=1).read_bytes())
    return _whole[0]


@settings(max_examples=DAMAGES_MAX, deadline=None)
@given(at=st.integers(0, 20_000), value=st.binary(min_size=1, max_size=8))
def test_damage_anywhere_gives_a_model_or_one_clear_line(at: int, value: bytes) -> None:
    whole = bytearray(_tiny())
    at %= len(whole)
    whole[at : at + len(value)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(whole)
        try:
            manifest = imported(path)
        except P2pgridError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            assert manifest_from_bytes(manifest.to_bytes()) == manifest
