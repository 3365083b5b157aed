"""What a doctor says of a machine, and that each warning comes with a remedy."""

import platform
import resource
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from p2pgrid.checkup import machine
from p2pgrid.checkup.finding import Finding, worst
from p2pgrid.cli.app import run
from p2pgrid.storage.models import ModelStore
from tests.tiny_gguf import write_tiny_gguf


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """With one small model."""
    monkeypatch.setenv("P2PGRID_HOME", str(tmp_path / "home"))
    file = write_tiny_gguf(tmp_path / "tiny.gguf", layers=2)
    assert run(["models", "import", str(file), "--name", "tiny"]) == 0
    return ModelStore(tmp_path / "home")


def test_a_model_that_is_whole_is_said_to_be(store: ModelStore) -> None:
    assert [(one.about, one.verdict) for one in machine.models(store, ignore)] == [("model tiny", "ok")]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "told"), [(flip_a_bit, "another SHA-256"), (cut_off, "bytes instead of")])
def test_a_damaged_model_is_a_problem_with_a_remedy(harm: Callable[[Path], None], told: str, store: ModelStore) -> None:
    harm(store.checkpoint(store.manifest("tiny")[0]))
    (found,) = machine.models(store, ignore)
    assert (found.verdict, told in found.says) == ("problem", True)
    assert "p2pgrid models remove tiny" in found.remedy


def test_a_store_without_models_is_all_right_for_a_client(tmp_path: Path) -> None:
    (found,) = machine.models(ModelStore(tmp_path), ignore)
    assert found.verdict == "ok"
    assert "a client needs none" in found.says


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine.disk(tmp_path / "file" / "home").verdict == "problem"
    assert machine.disk(tmp_path / "not" / "yet" / "there").verdict == "ok"


@pytest.mark.parametrize(("free", "verdict"), [(100 * 10**6, "problem"), (10**9, "warning"), (10**10, "ok")])
def test_little_disk_is_told(free: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    found = machine.disk(tmp_path)
    assert found.verdict == verdict
    assert bool(found.remedy) == (verdict != "ok")


@pytest.mark.parametrize(("available", "verdict"), [(10**8, "problem"), (5 * 10**8, "warning"), (10**10, "ok")])
def test_little_memory_is_told(available: int, verdict: str) -> None:
    assert machine.memory(available).verdict == verdict


def test_memory_is_said_in_layers_of_the_models_that_are_here(store: ModelStore) -> None:
    assert "2 of 2 layers of tiny" in machine.own_memory(store).says


@pytest.mark.parametrize(
    ("flags", "verdict", "told"),
    [
        ({"avx2"}, "ok", "on machines with AVX2 and no AVX-512"),
        ({"avx2", "avx512f", "avx512_vnni"}, "ok", "on machines with AVX-512"),
        ({"sse4_2"}, "warning", "many times as long"),
    ],
)
def test_what_the_instruction_set_means_is_said(
    flags: set[str], verdict: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = machine.processor(frozenset(flags), 4, 2)
    assert (found.verdict, told in found.says) == (verdict, True)


def test_another_version_of_the_network_library_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.libraries().verdict == "ok"
    right = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9.9" if name == "libp2p" else right(name))
    found = machine.libraries()
    assert found.verdict == "warning"
    assert "libp2p is 9.9.9" in found.says


def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    assert "ulimit -n" in machine.open_files().remedy


def test_the_worst_verdict_counts() -> None:
    findings = [Finding("a", "ok", ""), Finding("b", "problem", ""), Finding("c", "warning", "")]
    assert worst(findings) == "problem"
    assert worst([]) == "ok"
