"""The node's key: 32 random bytes in a file that only its owner may read."""

import os
import secrets
import stat
from pathlib import Path

from p2pgrid.errors import LocalFault
from p2pgrid.storage.disk import disk_errors, locked, write_whole
from p2pgrid.wire.signing import Identity

SEED_BYTES = 32
FILE_NAME = "identity"


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


def ephemeral_identity() -> Identity:
    """An identity that is gone with the process."""
    return Identity(secrets.token_bytes(SEED_BYTES))
