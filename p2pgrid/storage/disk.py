"""The border to the file system: errors in one line, locks between processes, writes that are whole or not there."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pgrid.errors import LocalFault

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Every OSError inside becomes a LocalFault that says what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        if error.errno in NO_SPACE:
            advice = "free some space, or set P2PGRID_HOME to another disk"
        elif error.errno in NOT_ALLOWED:
            advice = "allow it, or set P2PGRID_HOME to a directory of your own"
        else:
            advice = "check that disk"
        raise LocalFault(f"cannot {doing} {path}: {why}; {advice}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; wait for it if need be. Processes that die let go of it."""
    with disk_errors("lock", directory):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        with disk_errors("lock", directory):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path`, all or nothing, and on the disk when this returns.

    The caller holds the directory's lock: the half-written file has a fixed name, so that none is ever left over.
    Raises LocalFault.
    """
    half = path.with_name(f".{path.name}.new")
    with disk_errors("write", path):
        half.unlink(missing_ok=True)
        try:
            descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in it last through a power failure. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
