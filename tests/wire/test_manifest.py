import json

import msgspec
import pytest

from p2pgrid.wire.manifest import Manifest, TensorEntry, TokenizerData, manifest_from_bytes

MANIFEST = Manifest(
    format=1,
    architecture="llama",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    context=8192,
    rope_theta=100000.0,
    norm_eps=1e-5,
    weights="ab" * 32,
    weights_bytes=98_362_432,
    tokenizer="cd" * 32,
    tensors=(TensorEntry("token_embd.weight", "Q8_0", (49152, 576), 1_700_000, 30_081_024),),
    parts={"head": "ef" * 32, "embed": "01" * 32},
)
TOKENIZER = TokenizerData(
    format=1,
    model="gpt2",
    pre="smollm",
    tokens=("<|endoftext|>", "a", "Ġé"),
    kinds=(3, 1, 1),
    merges=("a b",),
    bos=0,
    eos=0,
    stops=(0,),
    add_bos=False,
    chat_template=None,
)


def test_a_manifest_survives_its_bytes() -> None:
    again = manifest_from_bytes(MANIFEST.to_bytes())
    assert again == MANIFEST
    assert again.id == MANIFEST.id


def test_the_id_of_a_manifest_does_not_change_unnoticed() -> None:
    assert MANIFEST.id == "89db52fcadcd940a283b8166f92c77a0ab6b24f86254a0c0693e3bd6af61c491"


def test_the_order_of_parts_does_not_change_the_id() -> None:
    reordered = msgspec.structs.replace(MANIFEST, parts=dict(reversed(MANIFEST.parts.items())))
    assert reordered.id == MANIFEST.id


@pytest.mark.parametrize("field", [f for f in Manifest.__struct_fields__ if f != "format"])
def test_the_id_covers_every_field(field: str) -> None:
    changed = {
        "architecture": "qwen2",
        "weights": "00" * 32,
        "tokenizer": "00" * 32,
        "tensors": (),
        "parts": {},
    }
    value = changed.get(field, getattr(MANIFEST, field))
    if field not in changed:
        value = value + 1
    assert msgspec.structs.replace(MANIFEST, **{field: value}).id != MANIFEST.id


def test_the_name_of_a_model_is_not_part_of_it() -> None:
    plain = json.loads(MANIFEST.to_bytes()) | {"name": "another name"}
    assert manifest_from_bytes(json.dumps(plain).encode()).id == MANIFEST.id


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"layers": 0}, {"layers": 1025}, {"hidden": 0}, {"weights": "AB" * 32}, {"parts": {"head": ""}}],
    ids=str,
)
def test_a_manifest_outside_its_limits_is_refused(change: dict[str, object]) -> None:
    plain = json.loads(MANIFEST.to_bytes()) | change
    with pytest.raises(msgspec.ValidationError):
        manifest_from_bytes(json.dumps(plain).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        manifest_from_bytes(data)


def test_a_tokenizer_survives_its_bytes() -> None:
    data = TOKENIZER.to_bytes()
    again = msgspec.json.decode(data, type=TokenizerData)
    assert again == TOKENIZER
    assert again.to_bytes() == data
