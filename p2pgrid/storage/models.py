"""The models on this machine: names that lead to a manifest, which leads to a tokenizer and a checkpoint.

`models/<name>.json` holds the model id; manifest, tokenizer and checkpoint are blobs. Names change under the
lock of `models/`, so that several processes may add and remove models at once.
"""

import re
from pathlib import Path
from typing import Literal

import msgspec

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import ModelId
from p2pgrid.storage.blobs import DIGEST, BlobStore
from p2pgrid.storage.catalogue import catalogue
from p2pgrid.storage.disk import disk_errors, locked, write_whole
from p2pgrid.wire.fields import Hex64
from p2pgrid.wire.manifest import Manifest, TokenizerData, manifest_from_bytes

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
TOKENIZER_BYTES_MAX = 64 * 1024 * 1024


class StoredModel(msgspec.Struct, frozen=True):
    """One name and what it leads to."""

    name: str
    model: ModelId | None
    manifest: Manifest | None
    """None when there is a problem."""
    problem: str = ""


class _Name(msgspec.Struct, frozen=True):
    """What a name's file holds."""

    format: Literal[1]
    model: Hex64


class ModelStore:
    """Models under one directory, see `storage.paths.data_dir`. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        """Nothing is created before it is needed."""
        self.root = root
        self.blobs = BlobStore(root)
        self._names = root / "models"

    def names(self) -> list[str]:
        with disk_errors("read", self._names):
            return sorted(path.stem for path in self._names.glob("*.json") if NAME.fullmatch(path.stem))

    def models(self) -> list[StoredModel]:
        """Every name; what is damaged is listed with its problem."""
        found = []
        for name in self.names():
            model: ModelId | None = None
            try:
                model = self._model_of(name)
                found.append(StoredModel(name, model, self._manifest(model)))
                self.checkpoint(model)
            except LocalFault as error:
                found = [one for one in found if one.name != name]
                found.append(StoredModel(name, model, None, str(error)))
        return found

    def manifest(self, name_or_id: str) -> tuple[ModelId, Manifest]:
        """The model of a name, or of a model id (64 hex digits).

        Raises BadInput when it is not here, LocalFault when it is damaged.
        """
        if DIGEST.fullmatch(name_or_id):
            if self.blobs.find(name_or_id) is None:
                raise BadInput(f"no model {name_or_id[:16]}… on this machine; {self._here()}")
            model = ModelId(name_or_id)
        else:
            model = self._model_of(name_or_id)
        return model, self._manifest(model)

    def tokenizer(self, model: ModelId) -> TokenizerData:
        """Raises BadInput when the model is not here, LocalFault when it is damaged."""
        digest = self.manifest(model)[1].tokenizer
        data = self.blobs.read(digest, TOKENIZER_BYTES_MAX)
        try:
            return msgspec.json.decode(data, type=TokenizerData)
        except msgspec.DecodeError as error:
            raise LocalFault(f"{self.blobs.path(digest)} is no tokenizer: {error}; get the model again") from error

    def checkpoint(self, model: ModelId) -> Path:
        """The file with the weights. Raises BadInput when the model is not here, LocalFault when it is not whole."""
        manifest = self.manifest(model)[1]
        path = self.blobs.path(manifest.weights)
        with disk_errors("read", path):
            nbytes = path.stat().st_size if path.is_file() else None
        if nbytes is None:
            raise LocalFault(f"the weights {path} are missing; get the model again")
        if nbytes != manifest.weights_bytes:
            raise LocalFault(f"{path} has {nbytes} bytes instead of {manifest.weights_bytes}; get the model again")
        return path

    def has(self, model: ModelId) -> bool:
        """Whether the model is here and whole, as far as names and sizes tell."""
        try:
            self.checkpoint(model)
            return self.blobs.find(self.manifest(model)[1].tokenizer) is not None
        except (BadInput, LocalFault):
            return False

    def check_name(self, name: str, model: ModelId | None = None) -> None:
        """Raises BadInput unless `name` is a name, and, with `model`, is free or already that model's."""
        if not NAME.fullmatch(name) or DIGEST.fullmatch(name):
            raise BadInput(f"{name!r} is no name for a model: up to 64 of a-z, 0-9, '.', '_' and '-'; give --name")
        if model is not None and name in self.names() and self._model_of(name) != model:
            raise BadInput(f"another model is called {name!r}; remove it first with: p2pgrid models remove {name}")

    def register(self, name: str, manifest: Manifest, tokenizer: TokenizerData, checkpoint: Path) -> ModelId:
        """Take a model in under `name`; `checkpoint` is moved here from a scratch directory of `blobs`.

        The caller has checked that manifest, tokenizer and checkpoint belong together. Doing it twice is harmless.
        Raises BadInput when another model has the name, LocalFault when the disk fails.
        """
        model = manifest.id
        with locked(self._names):
            self.check_name(name, model)
            self.blobs.add(manifest.to_bytes())
            self.blobs.add(tokenizer.to_bytes())
            self.blobs.adopt(checkpoint, manifest.weights)
            write_whole(self._names / f"{name}.json", msgspec.json.encode(_Name(1, model)))
        return model

    def remove(self, name: str) -> int:
        """Forget a name, and all that no other name needs; returns the bytes freed. Raises BadInput, LocalFault."""
        path = self._names / f"{name}.json"
        with locked(self._names):
            if name not in self.names():
                raise self._unknown(name)
            mine = self._needs(name)
            with disk_errors("remove", path):
                path.unlink()
            kept = {digest for other in self.names() for digest in self._needs(other)}
            return sum(self.blobs.remove(digest) for digest in mine - kept)

    def _needs(self, name: str) -> set[str]:
        """The blobs behind a name, as far as that can be read."""
        try:
            model = self._model_of(name)
        except LocalFault:
            return set()
        try:
            manifest = self._manifest(model)
        except LocalFault:
            return {model}
        return {model, manifest.tokenizer, manifest.weights}

    def _model_of(self, name: str) -> ModelId:
        if not NAME.fullmatch(name):
            raise self._unknown(name)
        path = self._names / f"{name}.json"
        with disk_errors("read", path):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise self._unknown(name) from None
        try:
            return msgspec.json.decode(data, type=_Name).model
        except msgspec.DecodeError as error:
            raise LocalFault(f"{path} is damaged; remove it and get the model again") from error

    def _manifest(self, model: ModelId) -> Manifest:
        data = self.blobs.read(model, MANIFEST_BYTES_MAX)
        try:
            return manifest_from_bytes(data)
        except msgspec.DecodeError as error:
            raise LocalFault(f"{self.blobs.path(model)} is no manifest: {error}; get the model again") from error

    def _unknown(self, name: str) -> BadInput:
        return BadInput(f"no model named {name!r} on this machine; {self._here(name)}")

    def _here(self, wanted: str = "") -> str:
        """What there is instead, and how to get more."""
        names = ", ".join(self.names()) or "none"
        listed = wanted if wanted in catalogue() else "|".join(catalogue())
        return f"here: {names}; get one with: p2pgrid models pull {listed}"
