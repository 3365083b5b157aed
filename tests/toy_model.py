"""A model of toy stages, with a tokenizer to go with it."""

from p2pgrid.node.client import ModelDescription
from p2pgrid.wire.manifest import Manifest
from tests.swarm_kit import LAYERS, MODEL
from tests.toy_tokenizer import TOKENIZER, VOCAB

CONTEXT_MAX = 256

DESCRIPTION = ModelDescription(
    MODEL,
    Manifest(
        format=1,
        architecture="toy",
        layers=LAYERS,
        hidden=16,
        heads=1,
        kv_heads=1,
        head_dim=16,
        ffn=16,
        vocab=VOCAB,
        context=CONTEXT_MAX,
        rope_theta=1.0,
        norm_eps=1.0,
        weights="0" * 64,
        weights_bytes=0,
        tokenizer="0" * 64,
        tensors=(),
        parts={},
    ),
    TOKENIZER,
)
