"""What a running process says of itself to others on this machine: a small JSON file, always whole."""

import os
from pathlib import Path

import msgspec

from p2pgrid.errors import LocalFault


class ProcessState(msgspec.Struct, frozen=True):
    """One process of a swarm."""

    pid: int
    peer_id: str
    addresses: tuple[str, ...]
    phase: str
    layers: tuple[int, int] | None = None
    gateway: str | None = None
    """The URL of its gateway, if it has one."""


def write_json(path: Path, document: object) -> None:
    """Replace `path` by `document` as JSON in one step. Raises LocalFault.

    A file has one writer. What is half written has a fixed name, so that killed ones leave no more than one behind.
    """
    half = path.with_name(f".{path.name}.new")
    try:
        half.write_bytes(msgspec.json.encode(document))
        half.replace(path)
    except OSError as error:
        raise LocalFault(f"cannot write {path}: {error.strerror}") from error


def read_state(path: Path) -> ProcessState | None:
    """None while nothing was written yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessState)
    except FileNotFoundError:
        return None


def own_state(
    peer_id: str,
    addresses: tuple[str, ...],
    phase: str,
    layers: tuple[int, int] | None,
    gateway: str | None = None,
) -> ProcessState:
    return ProcessState(os.getpid(), peer_id, addresses, phase, layers, gateway)
