"""Folders for work in progress: each belongs to one process, and what a process that was killed left is swept up.

A folder belongs to whoever holds its lock, which ends with its holder however that ends.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = "p2pgrid-work-"
"""What the names of our folders in the system's temporary directory begin with."""


@contextmanager
def own_folder(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A fresh folder in `parent`, ours alone, gone afterwards with all that is in it. Raises OSError.

    What dead processes left in `parent` under the same prefix goes first.
    """
    sweep_folders(parent, prefix)
    folder, lock = _new_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """The same in the system's temporary directory."""
    with own_folder(Path(tempfile.gettempdir()), TEMPORARY) as folder:
        yield folder


def sweep_folders(parent: Path, prefix: str = "") -> int:
    """Remove what dead processes left in `parent`, which need not exist; how many folders. Raises OSError."""
    swept = 0
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if folder.name.startswith(prefix) and _is_ours(folder):
            with suppress(FileNotFoundError):
                lock = try_lock(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
                    swept += 1
    return swept


def has_owner(folder: Path) -> bool:
    """Whether a living process holds the lock of that folder; False when it is not there."""
    with suppress(FileNotFoundError):
        lock = try_lock(folder)
        if lock is None:
            return True
        os.close(lock)
    return False


def try_lock(folder: Path) -> int | None:
    """An open descriptor that holds the folder's lock until it is closed; None when another one holds it.

    Raises OSError when the folder is not there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _new_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Between the two calls a sweep may have taken the folder for a leftover.
        with suppress(FileNotFoundError):
            lock = try_lock(folder)
            if lock is not None and folder.is_dir():
                return folder, lock
            if lock is not None:
                os.close(lock)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, and this user's: the temporary directory is everybody's."""
    with suppress(FileNotFoundError):
        return folder.is_dir() and not folder.is_symlink() and folder.lstat().st_uid == os.getuid()
    return False
