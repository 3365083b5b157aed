"""Built graphs on the disk: found again, checked, shared by processes that start at once, and bounded."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p2pgrid.engine import graph_cache
from p2pgrid.engine.graph_cache import BUILDING, GraphCache, graph_key
from p2pgrid.engine.ort_stage import open_stage
from p2pgrid.folders import own_folder
from p2pgrid.ids import Span
from p2pgrid.wire.manifest import Manifest
from p2pgrid.wire.tensors import Floats
from tests.engine.stages import SETTINGS, in_chunks, some_tokens, tiny_model

KEY = "a" * 64


class Builder:
    """Writes a graph and an array of some size, and counts how often."""

    def __init__(self, nbytes: int = 1000, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.built = 0
        self._nbytes = nbytes
        self._meanwhile = meanwhile

    def __call__(self, folder: Path) -> Path:
        self.built += 1
        (folder / "arrays").write_bytes(bytes(self._nbytes))
        (folder / "stage.onnx").write_bytes(b"graph")
        self._meanwhile()
        return folder / "stage.onnx"


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_built_once_is_found_again(tmp_path: Path) -> None:
    build = Builder()
    first = GraphCache(tmp_path / "deep" / "graphs").graph(KEY, build)
    again = GraphCache(tmp_path / "deep" / "graphs").graph(KEY, build)
    assert first == again and again.read_bytes() == b"graph" and (again.parent / "arrays").stat().st_size == 1000
    assert build.built == 1


def cut_arrays(entry: Path) -> None:
    os.truncate(entry / "arrays", 999)


def flip_a_bit(entry: Path) -> None:
    (entry / "arrays").write_bytes(bytes(500) + b"\1" + bytes(499))


def lose_the_graph(entry: Path) -> None:
    (entry / "stage.onnx").unlink()


def lose_the_checks(entry: Path) -> None:
    (entry / "checks.json").unlink()


def empty_checks(entry: Path) -> None:
    (entry / "checks.json").write_bytes(b'{"graph": "stage.onnx", "files": {}}')


def nonsense_checks(entry: Path) -> None:
    (entry / "checks.json").write_bytes(b"\xff{")


def a_file_instead(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_bytes(b"not a folder")


@pytest.mark.parametrize(
    "damage",
    [cut_arrays, flip_a_bit, lose_the_graph, lose_the_checks, empty_checks, nonsense_checks, a_file_instead],
)
def test_a_damaged_entry_is_built_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    kept, build = GraphCache(tmp_path), Builder()
    damage(kept.graph(KEY, build).parent)
    graph = kept.graph(KEY, build)
    assert build.built == 2
    assert graph.read_bytes() == b"graph" and (graph.parent / "arrays").read_bytes() == bytes(1000)
    assert entries(tmp_path) == {KEY}
    kept.graph(KEY, build)
    assert build.built == 2


def test_of_two_that_build_at_once_the_second_takes_what_the_first_put_there(tmp_path: Path) -> None:
    first = Builder()
    second = Builder(meanwhile=lambda: GraphCache(tmp_path).graph(KEY, first))
    graph = GraphCache(tmp_path).graph(KEY, second)
    assert (first.built, second.built) == (1, 1)
    assert graph.read_bytes() == b"graph"
    assert entries(tmp_path) == {KEY}


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GraphCache(tmp_path).graph(KEY, Builder(meanwhile=stop))
    assert not entries(tmp_path)


def test_the_least_recently_used_entries_go_first_and_the_newest_stays(tmp_path: Path) -> None:
    kept = GraphCache(tmp_path, bytes_max=3000)
    names = [letter * 64 for letter in "abcd"]
    for used, name in enumerate(names[:2]):
        os.utime(kept.graph(name, Builder()).parent, (used, used))
    kept.graph(names[0], Builder())  # used again: now the other one is older
    kept.graph(names[2], Builder())
    assert entries(tmp_path) == {names[0], names[2]}
    kept.graph(names[3], Builder(nbytes=5000))
    assert entries(tmp_path) == {names[3]}


def test_what_a_process_that_is_gone_was_building_is_swept_up_and_what_another_builds_is_not(tmp_path: Path) -> None:
    kept = GraphCache(tmp_path)
    (tmp_path / f"{BUILDING}gone").mkdir()
    (tmp_path / f"{BUILDING}gone" / "arrays").write_bytes(bytes(100))
    with own_folder(tmp_path, BUILDING) as busy:
        kept.graph(KEY, Builder())
        assert entries(tmp_path) == {KEY, busy.name}
    (tmp_path / f"{BUILDING}gone").mkdir()
    kept.graph(KEY, Builder())
    assert entries(tmp_path) == {KEY}, "also by one that finds its graph built"


def test_the_key_tells_models_spans_lengths_versions_and_builders_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest = tiny_model(tmp_path)
    keys = [
        graph_key(manifest, Span(0, 2), 128),
        graph_key(manifest, Span(0, 3), 128),
        graph_key(manifest, Span(0, 2), 256),
        graph_key(msgspec.structs.replace(manifest, weights="1" * 64), Span(0, 2), 128),
    ]
    monkeypatch.setattr(graph_cache, "VERSION", "another")
    keys.append(graph_key(manifest, Span(0, 2), 128))
    monkeypatch.setattr(graph_cache, "_builder", lambda: hashlib.sha256(b"changed").hexdigest())
    keys.append(graph_key(manifest, Span(0, 2), 128))
    assert len(set(keys)) == len(keys)
    assert keys[-1] == graph_key(manifest, Span(0, 2), 128)


# ── stages that start from it ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Manifest]]:
    yield tiny_model(tmp_path_factory.mktemp("tiny"), kinds={"*": "Q4_1", "token_embd": "Q8_0"})


def answers(path: Path, manifest: Manifest, cache: Path | None, heard: list[int] | None = None) -> Floats:
    """Logits of a stage of the whole model; `heard` takes what was read from the checkpoint."""
    span = Span(0, manifest.layers)
    advance = None if heard is None else lambda done, total: heard.append(done)
    stage = open_stage(path, manifest, span, SETTINGS, advance, cache=cache)
    try:
        return in_chunks([stage], 0, some_tokens(30), [20, *10 * [1]])
    finally:
        stage.close()


def test_a_warm_start_reads_no_checkpoint_and_answers_to_the_bit_as_a_cold_one(
    tiny: tuple[Path, Manifest], tmp_path: Path
) -> None:
    heard: list[int] = []
    plain, cold = answers(*tiny, None), answers(*tiny, tmp_path)
    warm = answers(*tiny, tmp_path, heard)
    assert np.array_equal(cold, plain) and np.array_equal(warm, plain)
    assert not heard


def test_a_warm_start_does_without_the_libraries_that_build(tiny: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, manifest = tiny
    answers(path, manifest, tmp_path / "graphs")
    (tmp_path / "manifest").write_bytes(manifest.to_bytes())
    code = (
        "import sys; from pathlib import Path; from p2pgrid.engine.ort_stage import open_stage;"
        "from p2pgrid.ids import Span; from p2pgrid.settings import StageSettings;"
        "from p2pgrid.wire.manifest import manifest_from_bytes;"
        "model, manifest, cache = map(Path, sys.argv[1:]);"
        "settings = StageSettings(context_max=128, sessions_max=3, threads=2);"
        "open_stage(model, manifest_from_bytes(manifest.read_bytes()), Span(0, 4), settings, cache=cache).close();"
        "print(sorted({'onnx', 'gguf'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "manifest"), str(tmp_path / "graphs")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_a_stage_outlives_its_entry(tiny: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, manifest = tiny
    expected = answers(path, manifest, None)
    stage = open_stage(path, manifest, Span(0, manifest.layers), SETTINGS, cache=tmp_path)
    [entry] = tmp_path.iterdir()
    for file in entry.iterdir():
        file.unlink()
    assert np.array_equal(in_chunks([stage], 0, some_tokens(30), [20, *10 * [1]]), expected)
    stage.close()


def test_a_folder_that_cannot_be_written_costs_the_cache_and_not_the_stage(
    tiny: tuple[Path, Manifest], tmp_path: Path
) -> None:
    (tmp_path / "graphs").write_bytes(b"a file where the folder should be")
    assert np.array_equal(answers(*tiny, tmp_path / "graphs"), answers(*tiny, None))


def test_an_entry_that_the_runtime_cannot_load_is_passed_over(tiny: tuple[Path, Manifest], tmp_path: Path) -> None:
    expected = answers(*tiny, tmp_path)
    [entry] = tmp_path.iterdir()
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    GraphCache(tmp_path).graph(entry.name, Builder())
    assert np.array_equal(answers(*tiny, tmp_path), expected)
