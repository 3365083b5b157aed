"""Contents by their SHA-256: `blobs/<64 hex digits>`, whole or not there.

Everything is written in a scratch directory first and moved in when it is complete and checked. One without an owner
was left by a process that died, and is swept up (`p2pgrid.folders`).
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from p2pgrid.errors import LocalFault
from p2pgrid.folders import own_folder, sweep_folders
from p2pgrid.storage.disk import disk_errors, sync_directory

DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        """Nothing is created before it is needed."""
        self.directory = root / "blobs"
        self._scratch = root / "scratch"

    def path(self, digest: str) -> Path:
        """Where the blob is or would be. Raises ValueError when `digest` is no SHA-256 in lower-case hex."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256 digest: {digest!r}")
        return self.directory / digest

    def find(self, digest: str) -> Path | None:
        """Where the blob is, or None. What is there was checked when it came; `read` checks again."""
        path = self.path(digest)
        return path if path.is_file() else None

    def read(self, digest: str, nbytes_max: int) -> bytes:
        """A small blob, checked against its digest. Raises LocalFault when it is missing, damaged or too large."""
        path = self.path(digest)
        with disk_errors("read", path), path.open("rb") as file:
            data = file.read(nbytes_max + 1)
        if len(data) > nbytes_max:
            raise LocalFault(f"{path} is larger than {nbytes_max} bytes; remove it and get the model again")
        if hashlib.sha256(data).hexdigest() != digest:
            raise LocalFault(f"{path} is damaged; remove it and get the model again")
        return data

    def add(self, data: bytes) -> str:
        """Keep `data`; returns its digest. Raises LocalFault."""
        with self.scratch() as folder:
            digest = save([data], folder / "blob", len(data))
            self.adopt(folder / "blob", digest)
        return digest

    def adopt(self, path: Path, digest: str) -> None:
        """Move a file in from a scratch directory of this store; its digest is checked by then. Raises LocalFault."""
        target = self.path(digest)
        with disk_errors("write", target):
            self.directory.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            sync_directory(self.directory)

    def remove(self, digest: str) -> int:
        """Forget a blob; returns the bytes that this freed, 0 when it was not there. Raises LocalFault."""
        path = self.path(digest)
        with disk_errors("remove", path), suppress(FileNotFoundError):
            nbytes = path.stat().st_size
            path.unlink()
            return nbytes
        return 0

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A fresh directory on the store's disk, ours alone, gone afterwards with all that is in it."""
        with ExitStack() as held:
            with disk_errors("write in", self._scratch):
                self._scratch.mkdir(parents=True, exist_ok=True)
                folder = held.enter_context(own_folder(self._scratch))
            yield folder

    def sweep(self) -> int:
        """Remove what processes that died have left half done; returns how many pieces. Raises LocalFault."""
        with disk_errors("clean up", self._scratch):
            return sweep_folders(self._scratch)


def save(pieces: Iterable[bytes], path: Path, nbytes_max: int) -> str:
    """Write `pieces` to a new file and have it on the disk when this returns; returns the SHA-256.

    Raises LocalFault when they are more than `nbytes_max` bytes, and when the disk is full or fails; what is there
    by then is left to whoever owns the directory.
    """
    digest = hashlib.sha256()
    nbytes = 0
    with disk_errors("write", path), path.open("wb") as file:
        for piece in pieces:
            nbytes += len(piece)
            if nbytes > nbytes_max:
                raise LocalFault(f"more than the expected {nbytes_max} bytes came for {path.name}; nothing was kept")
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
