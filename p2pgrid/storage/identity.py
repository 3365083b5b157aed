"""The node's key: 32 random bytes in a file that only its owner may read."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pgrid.errors import LocalFault
from p2pgrid.folders import try_lock
from p2pgrid.storage.disk import disk_errors, locked, write_whole
from p2pgrid.wire.signing import Identity

SEED_BYTES = 32
FILE_NAME = "identity"
SLOTS_MAX = 256


def load_identity(directory: Path) -> Identity:
    """The identity kept in `directory`; made at the first call, the same ever after, also for several processes.

    Raises LocalFault when others than the owner may read the file, or when it is no seed.
    """
    path = directory / FILE_NAME
    with locked(directory):
        if not os.path.lexists(path):
            write_whole(path, secrets.token_bytes(SEED_BYTES), mode=0o600)
    with disk_errors("read", path), path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        seed = file.read(SEED_BYTES + 1)
    if mode & 0o077:
        raise LocalFault(f"others may read the node's key {path} (mode {mode:04o}); run: chmod 600 {path}")
    if len(seed) != SEED_BYTES:
        raise LocalFault(f"{path} is not a key of {SEED_BYTES} bytes; remove it to become a new peer with a new key")
    return Identity(seed)


@contextmanager
def claim_identity(root: Path, role: str) -> Iterator[Identity]:
    """The identity of this machine's first `role`, or of its second while the first one runs, and so on.

    Two processes must not be one peer, so each holds the lock of its identity's directory for as long as it
    lives; the next start takes the first identity that is free. Raises LocalFault.
    """
    for slot in range(1, SLOTS_MAX + 1):
        directory = root / "identities" / f"{role}-{slot}"
        with disk_errors("lock", directory):
            directory.mkdir(parents=True, exist_ok=True)
            held = try_lock(directory)
        if held is None:
            continue
        try:
            yield load_identity(directory / "key")
        finally:
            os.close(held)
        return
    raise LocalFault(f"{SLOTS_MAX} processes of kind {role} run from {root} already; set P2PGRID_HOME for more")


def ephemeral_identity() -> Identity:
    """An identity that is gone with the process."""
    return Identity(secrets.token_bytes(SEED_BYTES))
