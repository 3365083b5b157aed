from pathlib import Path

import pytest

from p2pgrid.checkpoints.gguf_import import read_gguf
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import ModelId
from p2pgrid.storage.catalogue import catalogue
from p2pgrid.storage.models import ModelStore
from tests.tiny_gguf import write_tiny_gguf

LISTED = "smollm2-135m-instruct"


def stored(root: Path, name: str, seed: int = 0) -> ModelId:
    store = ModelStore(root)
    with store.blobs.scratch() as folder:
        path = write_tiny_gguf(folder / "m.gguf", layers=1, seed=seed)
        return store.register(name, *read_gguf(path, lambda done, total: None), path)


def blobs(root: Path) -> int:
    return len(list((root / "blobs").iterdir()))


def test_a_model_is_found_by_its_name_and_by_its_id(tmp_path: Path) -> None:
    model = stored(tmp_path, "tiny")
    store = ModelStore(tmp_path)
    assert store.names() == ["tiny"]
    assert store.manifest("tiny") == store.manifest(model)
    manifest = store.manifest(model)[1]
    assert manifest.id == model
    assert store.checkpoint(model).stat().st_size == manifest.weights_bytes
    assert len(store.tokenizer(model).tokens) == manifest.vocab
    assert store.has(model)


def test_a_name_of_the_catalogue_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert not store.has(catalogue()[LISTED].model)
    with pytest.raises(BadInput, match=f"p2pgrid models pull {LISTED}"):
        store.manifest(LISTED)


@pytest.mark.parametrize("name", ["nope", "../identity", "", "A", "f" * 64])
def test_an_unknown_name_says_what_is_here_and_how_to_get_more(tmp_path: Path, name: str) -> None:
    stored(tmp_path, "tiny")
    with pytest.raises(BadInput, match=rf"here: tiny; get one with: p2pgrid models pull {LISTED}"):
        ModelStore(tmp_path).manifest(name)


@pytest.mark.parametrize("name", ["", "A", "../x", ".hidden", "a/b", "x" * 65, "0" * 64])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is no name"):
        stored(tmp_path, name)
    assert ModelStore(tmp_path).names() == []


def test_a_name_is_not_given_to_a_second_model_but_again_to_the_same(tmp_path: Path) -> None:
    model = stored(tmp_path, "tiny")
    assert stored(tmp_path, "tiny") == model
    with pytest.raises(BadInput, match="another model is called 'tiny'"):
        stored(tmp_path, "tiny", seed=1)
    assert blobs(tmp_path) == 3


def test_removing_keeps_what_another_name_needs(tmp_path: Path) -> None:
    stored(tmp_path, "one")
    model = stored(tmp_path, "two")
    stored(tmp_path, "other", seed=1)
    store = ModelStore(tmp_path)
    assert blobs(tmp_path) == 5, "two models with one tokenizer"
    assert store.remove("one") == 0
    assert store.has(model)
    assert store.remove("two") > 30_000
    assert store.names() == ["other"]
    assert blobs(tmp_path) == 3
    store.remove("other")
    assert blobs(tmp_path) == 0
    with pytest.raises(BadInput, match="no model named 'other'"):
        store.remove("other")


def test_damage_is_listed_beside_what_is_whole_and_can_be_removed(tmp_path: Path) -> None:
    model = stored(tmp_path, "whole")
    cut = stored(tmp_path, "cut", seed=1)
    (tmp_path / "models" / "odd.json").write_text("{")
    store = ModelStore(tmp_path)
    store.checkpoint(cut).write_bytes(b"short")
    problems = {one.name: one.problem for one in store.models()}
    assert problems["whole"] == ""
    assert "5 bytes instead of" in problems["cut"]
    assert "odd.json is damaged" in problems["odd"]
    assert store.has(model)
    assert not store.has(cut)
    with pytest.raises(LocalFault, match="get the model again"):
        store.checkpoint(cut)
    store.remove("odd")
    store.remove("cut")
    assert store.names() == ["whole"]


def test_a_manifest_or_weights_that_are_gone_are_told(tmp_path: Path) -> None:
    model = stored(tmp_path, "tiny")
    store = ModelStore(tmp_path)
    store.checkpoint(model).unlink()
    with pytest.raises(LocalFault, match=r"weights .* are missing; get the model again"):
        store.checkpoint(model)
    store.blobs.path(model).write_bytes(b"{}")
    with pytest.raises(LocalFault, match="damaged"):
        store.manifest("tiny")
    stored(tmp_path, "tiny")
    assert store.has(model), "taking it in again repairs it"
