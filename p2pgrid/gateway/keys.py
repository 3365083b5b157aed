"""Who may ask: API keys in a file that holds none of them, only what tells whether a key is the right one."""

import base64
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.storage.disk import disk_errors, locked, write_whole

Scope = Literal["chat", "completions", "models", "admin"]
SCOPES: tuple[Scope, ...] = ("chat", "completions", "models", "admin")
"""`models` is also for the page's view of the swarm, `admin` for `/metrics`."""

FILE_NAME = "api-keys.json"
KEYS_MAX = 10_000
ID_BYTES, SECRET_BYTES, SALT_BYTES = 5, 24, 16
NAME_MAX = 64


class KeyRecord(msgspec.Struct, frozen=True):
    """A key, as it is kept. A limit of 0 is none."""

    id: str
    """Also a part of the key itself, and the scope of the prompts that stages keep for it."""
    name: Annotated[str, Meta(max_length=NAME_MAX)]
    salt: str
    digest: str
    """SHA-256 over salt and secret. The secret has 192 random bits: nobody guesses it, however quick the hash."""
    scopes: tuple[Scope, ...]
    requests_per_min: Annotated[int, Meta(ge=0)] = 0
    tokens_per_day: Annotated[int, Meta(ge=0)] = 0
    created_at_s: float = 0.0


class KeyFile(msgspec.Struct, frozen=True):
    format: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()


def new_key(
    name: str, scopes: Sequence[Scope], *, requests_per_min: int = 0, tokens_per_day: int = 0, now_s: float
) -> tuple[str, KeyRecord]:
    """A key, which is shown once, and what is kept of it."""
    key_id = secrets.token_hex(ID_BYTES)
    secret, salt = secrets.token_urlsafe(SECRET_BYTES), secrets.token_hex(SALT_BYTES)
    record = KeyRecord(
        key_id, name, salt, _digest(salt, secret), tuple(scopes), requests_per_min, tokens_per_day, now_s
    )
    return f"p2p-{key_id}-{secret}", record


class KeyStore:
    """The keys file of `directory`; others than its owner may not read it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._records: dict[str, KeyRecord] = {}

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def records(self) -> list[KeyRecord]:
        """All keys, oldest first. Raises LocalFault."""
        self._reload()
        return list(self._records.values())

    def add(self, record: KeyRecord) -> None:
        """Raises LocalFault, and BadInput when there are too many."""
        with locked(self._directory):
            records = self.records()
            if len(records) >= KEYS_MAX:
                raise BadInput(f"{KEYS_MAX} keys are kept already: revoke some with `p2pgrid keys revoke`")
            self._write([*records, record])

    def revoke(self, key_id: str) -> None:
        """Raises BadInput when there is no such key, LocalFault."""
        with locked(self._directory):
            records = self.records()
            left = [record for record in records if record.id != key_id]
            if len(left) == len(records):
                raise BadInput(f"no key has the id {key_id}: see `p2pgrid keys list`")
            self._write(left)

    def find(self, key: str) -> KeyRecord | None:
        """The record of `key`, as the file is now; None for a wrong one. Raises LocalFault."""
        self._reload()
        _, _, rest = key.partition("-")
        key_id, _, secret = rest.partition("-")
        record = self._records.get(key_id)
        if record is None:
            return None
        right = hmac.compare_digest(_digest(record.salt, secret), record.digest)
        return record if right and key.startswith("p2p-") else None

    def _write(self, records: Sequence[KeyRecord]) -> None:
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(KeyFile(keys=tuple(records)))), mode=0o600)

    def _reload(self) -> None:
        """Read the file if it is another one than last time: a revoked key is no key from then on."""
        if not self.exists:
            self._seen, self._records = None, {}
            return
        with disk_errors("read", self._path), self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == self._seen:
                return
            data = file.read()
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise LocalFault(f"others may read {self._path}; run: chmod 600 {self._path}")
        try:
            document = msgspec.json.decode(data, type=KeyFile)
        except msgspec.MsgspecError as error:
            raise LocalFault(f"{self._path} is no file of API keys: {error}; move it away") from error
        self._records = {record.id: record for record in document.keys}
        self._seen = seen


def same_text(one: str, other: str) -> bool:
    """Compared in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def short_name(key: str) -> str:
    """A name for a key that was not made here, from which it cannot be guessed."""
    return base64.b32encode(hashlib.sha256(key.encode()).digest())[:8].decode().lower()


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()
