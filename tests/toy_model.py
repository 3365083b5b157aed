"""A model of toy stages with a tokenizer to go with it: one token for each byte, and three control tokens."""

from p2pgrid.node.client import ModelDescription
from p2pgrid.wire.manifest import Manifest, TokenizerData
from tests.swarm_kit import LAYERS, MODEL
from tests.tiny_gguf import CHAT_TEMPLATE, CONTROL, NORMAL, SPECIAL, byte_letters

VOCAB = 256
"""Of the bytes only the last three are left out, which no UTF-8 text has."""
CONTEXT_MAX = 256
END = SPECIAL.index("<|im_end|>")
FIRST_BYTE = len(SPECIAL)

TOKENIZER = TokenizerData(
    format=1,
    model="gpt2",
    pre="gpt-2",
    tokens=(*SPECIAL, *byte_letters()[: VOCAB - FIRST_BYTE]),
    kinds=(*[CONTROL] * FIRST_BYTE, *[NORMAL] * (VOCAB - FIRST_BYTE)),
    merges=(),
    bos=None,
    eos=END,
    stops=(END,),
    add_bos=False,
    chat_template=CHAT_TEMPLATE,
)
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
