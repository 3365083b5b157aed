import hashlib
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid.errors import LocalFault
from p2pgrid.storage.blobs import BlobStore, save


def contents(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_blob_is_kept_under_its_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.add(b"hello")
    assert digest == hashlib.sha256(b"hello").hexdigest()
    assert store.read(digest, 100) == b"hello"
    assert store.find(digest) == tmp_path / "blobs" / digest
    assert store.add(b"hello") == digest
    assert contents(tmp_path) == [f"blobs/{digest}"]


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    store, digest = BlobStore(tmp_path), "0" * 64
    assert store.find(digest) is None
    assert store.remove(digest) == 0
    with pytest.raises(LocalFault, match="No such file"):
        store.read(digest, 100)


def test_a_damaged_or_oversized_blob_is_not_read(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.add(b"hello")
    with pytest.raises(LocalFault, match="larger than 4 bytes"):
        store.read(digest, 4)
    store.path(digest).write_bytes(b"hellO")
    with pytest.raises(LocalFault, match="damaged; remove it"):
        store.read(digest, 100)
    store.add(b"hello")
    assert store.read(digest, 100) == b"hello", "adding it again repairs it"


@pytest.mark.parametrize("digest", ["", "../identity", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_digests_are_paths(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        BlobStore(tmp_path).path(digest)


def test_removing_says_what_it_frees(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = store.add(b"hello")
    assert store.remove(digest) == 5
    assert store.find(digest) is None


def test_more_bytes_than_expected_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(LocalFault, match="more than the expected 5 bytes"), store.scratch() as folder:
        save([b"hello", b"!"], folder / "blob", 5)
    assert contents(tmp_path) == []


def test_a_full_disk_is_one_line_and_nothing_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with (
        pytest.raises(LocalFault, match="No space left on device; free some space") as caught,
        store.scratch() as folder,
    ):
        (folder / "blob").symlink_to("/dev/full")
        save([b"x" * 100_000], folder / "blob", 1_000_000)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_scratch_directory_in_use_is_not_swept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.scratch() as folder:
        (folder / "half").write_bytes(b"x")
        assert BlobStore(tmp_path).sweep() == 0
        assert (folder / "half").exists()
    assert not folder.exists()


DIES = """
import sys, os, signal
from pathlib import Path
from p2pgrid.storage.blobs import BlobStore
with BlobStore(Path(sys.argv[1])).scratch() as folder:
    (folder / "half").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    assert BlobStore(tmp_path).sweep() == 1
    assert list((tmp_path / "scratch").iterdir()) == []


def add_and_sweep(root: Path) -> None:
    store = BlobStore(root)
    for i in range(30):
        store.add(str(i % 7).encode() * 1000)
        store.sweep()


def test_processes_that_write_and_sweep_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(add_and_sweep, [tmp_path] * 3)
    assert len(contents(tmp_path)) == 7
    for path in (tmp_path / "blobs").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert list((tmp_path / "scratch").iterdir()) == []
