"""A tokenizer for toy stages: one token for each byte, and three control tokens."""

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.engine.json_schema import JsonGrammars
from p2pgrid.wire.manifest import TokenizerData
from tests.tiny_gguf import CHAT_TEMPLATE, CONTROL, NORMAL, SPECIAL, byte_letters

VOCAB = 256
"""Of the bytes only the last three are left out, which no UTF-8 text has."""
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


def grammars() -> JsonGrammars:
    return JsonGrammars(TOKENIZER, InlineExecutor())
