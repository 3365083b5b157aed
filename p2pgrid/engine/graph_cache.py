"""Built graphs kept on the disk between starts: `<folder>/<key>/` has the graph, its arrays and their checksums.

An entry is built beside its place, renamed into it and never changed; of two that build the same at once, the second
takes what the first put there. A damaged entry is built anew. An entry that goes while a stage is open on it stays
mapped until that stage is closed.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from p2pgrid.engine.ort_session import VERSION, processor
from p2pgrid.folders import own_folder, sweep_folders
from p2pgrid.ids import Span
from p2pgrid.wire.manifest import Manifest

BYTES_MAX = 4 * 1024**3
"""Of all entries together; the least recently used go first, the one just built stays."""

BUILDING = ".work-"
"""What the names of folders begin with in which an entry is being built."""
_CHECKS = "checks.json"

Build = Callable[[Path], Path]
"""Writes a graph and what belongs to it into an empty folder; the path of the graph."""


class _Checks(msgspec.Struct, frozen=True):
    graph: str
    """Name of the file that is the graph."""
    files: dict[str, tuple[int, str]]
    """Size in bytes and SHA-256 of each file."""


def graph_key(manifest: Manifest, span: Span, slab_positions: int) -> str:
    """A digest over everything that the graph of a span follows from."""
    facts = (hashlib.sha256(manifest.to_bytes()).hexdigest(), span, slab_positions, VERSION, processor())
    return hashlib.sha256(msgspec.json.encode((*facts, _builder()))).hexdigest()


class GraphCache:
    """A folder of built graphs, for any number of processes."""

    def __init__(self, folder: Path, bytes_max: int = BYTES_MAX) -> None:
        self._folder = folder
        self._bytes_max = bytes_max

    def graph(self, key: str, build: Build) -> Path:
        """The path of the graph of `key`, built if it is not here or damaged.

        Raises OSError when the disk is full or the folder cannot be written, and whatever `build` raises.
        """
        entry = self._folder / key
        sweep_folders(self._folder, BUILDING)
        checks = _sound(entry)
        if checks is not None:
            os.utime(entry)
            return entry / checks.graph
        self._folder.mkdir(parents=True, exist_ok=True)
        with own_folder(self._folder, BUILDING) as building:
            checks = _checked(build(building))
            self._put(building, entry)
        self._prune(entry)
        return entry / checks.graph

    def _put(self, building: Path, entry: Path) -> None:
        try:
            building.rename(entry)
        except OSError:
            if _sound(entry) is not None:
                return  # somebody else was faster
            with own_folder(self._folder, BUILDING) as away:
                entry.rename(away / "damaged")
            building.rename(entry)

    def _prune(self, newest: Path) -> None:
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # others prune too
                if path != newest and not path.name.startswith(BUILDING):
                    entries.append((path.stat().st_mtime, _nbytes(path), path))
        total = _nbytes(newest)
        for _, nbytes, path in sorted(entries, reverse=True):
            total += nbytes
            if total > self._bytes_max:
                shutil.rmtree(path, ignore_errors=True)


def _checked(graph: Path) -> _Checks:
    """Checksums of everything beside the graph, written down there."""
    checks = _Checks(graph.name, {path.name: _digest(path) for path in graph.parent.iterdir()})
    (graph.parent / _CHECKS).write_bytes(msgspec.json.encode(checks))
    return checks


def _sound(entry: Path) -> _Checks | None:
    """The checksums of an entry if all its files agree with them; 35 ms for 60 MB."""
    try:
        checks = msgspec.json.decode((entry / _CHECKS).read_bytes(), type=_Checks)
        if checks.graph in checks.files and all(_digest(entry / name) == at for name, at in checks.files.items()):
            return checks
    except (OSError, msgspec.DecodeError):
        pass
    return None


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _nbytes(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.iterdir()) if entry.is_dir() else entry.stat().st_size


@cache
def _builder() -> str:
    """A digest of the source that graphs are built by, so that no change to it can leave an old graph in use."""
    engine = Path(__file__).parent
    sources = [engine / "graph.py", engine / "kernels.py", *sorted((engine.parent / "checkpoints").glob("*.py"))]
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
