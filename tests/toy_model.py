"""A model of toy stages, with a tokenizer to go with it."""

from p2pgrid.node.client import ModelDescription
from p2pgrid.wire.manifest import Manifest
from tests.swarm_kit import LAYERS, MODEL
from tests.toy_tokenizer import TOKENIZER, VOCAB

CONTEXT_MAX = 256


def toy_manifest(tokenizer: str, vocab: int, context: int = CONTEXT_MAX) -> Manifest:
    """`tokenizer` is its digest."""
    return Manifest(
        format=1,
        architecture="toy",
        layers=LAYERS,
        hidden=16,
        heads=1,
        kv_heads=1,
        head_dim=16,
        ffn=16,
        vocab=vocab,
        context=context,
        rope_theta=1e4,
        norm_eps=1e-5,
        weights="ab" * 32,
        weights_bytes=0,
        tokenizer=tokenizer,
        tensors=(),
        parts={},
    )


DESCRIPTION = ModelDescription(MODEL, toy_manifest("0" * 64, VOCAB), TOKENIZER)
