import re

import pytest

from p2pgrid.storage.catalogue import catalogue
from p2pgrid.storage.models import NAME
from tests.real_model import NAME as REAL
from tests.real_model import real_store


def test_every_entry_has_a_usable_name_and_a_pinned_version() -> None:
    assert REAL in catalogue()
    for name, entry in catalogue().items():
        assert NAME.fullmatch(name)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", entry.package)
        assert re.fullmatch(r"[0-9.]+", entry.version)
        assert entry.member.endswith(".gguf")


def test_each_entry_is_one_line() -> None:
    from importlib.resources import files

    lines = files("p2pgrid").joinpath("data", "catalogue.toml").read_text("utf-8").splitlines()
    for name in catalogue():
        assert sum(line.startswith(f"{name} = {{") and line.endswith("}") for line in lines) == 1


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(catalogue()))
def test_the_catalogue_s_id_is_that_of_the_pulled_model(name: str) -> None:
    assert name == REAL, "pull and check each new entry here too"
    model, manifest = real_store().manifest(name)
    entry = catalogue()[name]
    assert (model, manifest.id) == (entry.model, entry.model)
    assert (manifest.weights, manifest.weights_bytes) == (entry.sha256, entry.bytes)
