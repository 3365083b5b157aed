"""Text to token ids and back, from the tables of a checkpoint: byte-level BPE and a chat template.

Tokenization is `tokenizers`' BPE behind the pre-tokenizer that the checkpoint names. Control tokens
(`<|im_end|>`, …) are never known to it: they are cut out here, and only where the caller says that the text
may contain some. So what a user types cannot end a turn or begin a new one.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
import tokenizers
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from p2pgrid.errors import BadInput
from p2pgrid.wire.manifest import TokenizerData

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
MESSAGES_MAX = 4096
MARKS = range(0xF0000, 0xFFFFE)
"""Characters for private use, of which one that a conversation does not contain marks what a user typed."""

WORDS_LLAMA_BPE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_QWEN2 = WORDS_LLAMA_BPE.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _by_words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": lambda: _by_words(WORDS_LLAMA_BPE),
    "qwen2": lambda: _by_words(WORDS_QWEN2),
}
"""By the name that GGUF gives them; see the pre-tokenizers in llama.cpp's src/llama-vocab.cpp."""


class Tokenizer:
    """One checkpoint's tokenizer. Holds no state between calls."""

    def __init__(self, data: TokenizerData) -> None:
        """Raises BadInput when the tables are of a kind that this version does not know, or do not fit together."""
        self.stops: tuple[int, ...] = data.stops
        """Token ids that end an answer."""
        self.vocab = len(data.tokens)
        self._data = data
        self._bpe = _build(data)
        self._bytes = _bytes_of_tokens(data)
        self._control = {
            token: i for i, (token, kind) in enumerate(zip(data.tokens, data.kinds, strict=True)) if kind == CONTROL
        }
        longest_first = sorted(filter(None, self._control), key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text` as it stands; nothing is put in front.

        With `special`, control tokens written in the text become those tokens: only for text that no user
        wrote. Without it they are text like any other. Raises BadInput when `text` is not valid Unicode.
        """
        return self._encode(text, special, mark="")

    def prompt(self, text: str) -> list[int]:
        """Token ids of a raw prompt to be continued: with the checkpoint's first token, if it wants one."""
        return self._begin(self.encode(text, special=False))

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Token ids of a conversation in the checkpoint's chat format, up to where the answer begins.

        Each message has a `role` and its `content`, and whatever else the template asks for; `tools` are functions that
        the model may call, as JSON has them. Control tokens come from the template alone: what looks like one inside
        a message or a tool is marked before rendering, and stays text.

        Raises BadInput when the checkpoint has no template, or the template does not accept the messages.
        """
        if not messages or len(messages) > MESSAGES_MAX:
            raise BadInput(f"a conversation has 1 to {MESSAGES_MAX} messages, not {len(messages)}")
        for message in messages:
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise BadInput("each message needs a role and a content, both text")
        try:
            mark = self._unused_mark([messages, tools])
            rendered = self._template.render(
                messages=self._marked(messages, mark),
                **({"tools": self._marked(tools, mark)} if tools else {}),
                add_generation_prompt=True,
                bos_token=self._text_of(self._data.bos),
                eos_token=self._text_of(self._data.eos),
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise BadInput(f"the model's chat template does not accept these messages: {_one_line(error)}") from error
        return self._begin(self._encode(rendered, special=True, mark=mark))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, control tokens left out; broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for in an answer, maybe a part of a character; control tokens give none.

        Raises BadInput when there is no such token.
        """
        if not 0 <= token < self.vocab:
            raise BadInput(f"no such token: {token}; the model has {self.vocab}")
        return self._bytes[token]

    def name_of(self, token: int) -> str:
        r"""What stands for a token where one is shown by itself, of each its own.

        Its text, a control token's name, or `bytes:\xe2\x80` for parts of characters. Raises BadInput when there is no
        such token.
        """
        data = self.bytes_of(token)
        try:
            return data.decode() if data else self._data.tokens[token]
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _encode(self, text: str, special: bool, mark: str) -> list[int]:
        ids: list[int] = []
        pieces = self._cut.split(text) if special and self._cut else [text]
        for i, piece in enumerate(pieces):
            if i % 2:
                ids.append(self._control[piece])
            elif piece:
                plain = piece.replace(mark, "") if mark else piece
                try:
                    ids += self._bpe.encode(plain, add_special_tokens=False).ids
                except (UnicodeError, TypeError) as error:
                    raise BadInput("the text is not valid Unicode: it has half of a surrogate pair") from error
        return ids

    def _begin(self, ids: list[int]) -> list[int]:
        bos = self._data.bos
        return [bos, *ids] if self._data.add_bos and bos is not None and ids[:1] != [bos] else ids

    def _marked(self, value: Any, mark: str) -> Any:
        """`value` with the mark after each letter of what looks like a control token, so that it is none."""
        match value:
            case str() if self._cut is not None:
                return self._cut.sub(lambda found: "".join(letter + mark for letter in found[0]), value)
            case Mapping():
                return {self._marked(key, mark): self._marked(each, mark) for key, each in value.items()}
            case list() | tuple():
                return [self._marked(each, mark) for each in value]
            case _:
                return value

    def _unused_mark(self, document: Any) -> str:
        seen = {letter for text in _texts(document) for letter in text}
        seen.update(self._data.chat_template or "")
        for code in MARKS:
            if chr(code) not in seen:
                return chr(code)
        raise BadInput("the messages use every character for private use; leave some of them out")

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self._data.tokens[token]

    @cached_property
    def template_has_tools(self) -> bool:
        """Whether the checkpoint has a chat template that can tell the model of functions."""
        try:
            return "tools" in meta.find_undeclared_variables(_environment().parse(self._data.chat_template or ""))
        except (jinja2.TemplateError, RecursionError):
            return False

    def template_shows(self, text: str) -> bool:
        """Whether the chat template has `text` in it, and answers would show it: it is no control token."""
        return text in (self._data.chat_template or "") and text not in self._control

    @cached_property
    def _template(self) -> jinja2.Template:
        source = self._data.chat_template
        if source is None:
            raise BadInput("this model has no chat template; use --raw to send the text as it stands")
        try:
            return _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BadInput(f"the model's chat template is broken: {_one_line(error)}; use --raw") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Prompts are no web pages: jinja's own filter would write `<` and letters with accents as numbers.

    Chat templates are written for transformers, whose filter takes json's own options as well.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON document, keys too."""
    match value:
        case str():
            yield value
        case Mapping():
            yield from _texts([*value, *value.values()])
        case list() | tuple():
            for each in value:
                yield from _texts(each)
        case _:
            pass


def _refuse(message: str) -> None:
    """What templates call when a conversation is not to their liking."""
    raise jinja2.TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _build(data: TokenizerData) -> tokenizers.Tokenizer:
    if data.model != "gpt2":
        raise BadInput(f"the model's tokenizer is of kind {data.model!r}; this version knows 'gpt2' (byte-level BPE)")
    if len(data.kinds) != len(data.tokens):
        raise BadInput(f"the model's tokenizer is damaged: {len(data.kinds)} types for {len(data.tokens)} tokens")
    if data.pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise BadInput(f"the model's tokenizer splits words by {data.pre!r}; this version knows {known}")
    vocabulary = {token: i for i, token in enumerate(data.tokens) if data.kinds[i] != CONTROL}
    bpe = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(data, vocabulary),
            fuse_unk=False,
            ignore_merges=data.pre == "llama-bpe",
        )
    )
    bpe.pre_tokenizer = PRE_TOKENIZERS[data.pre]()
    if data.pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    bpe.add_tokens(
        [AddedToken(token, normalized=False) for i, token in enumerate(data.tokens) if data.kinds[i] == USER_DEFINED]
    )
    return bpe


def _merges(data: TokenizerData, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in data.merges:
        left, _, right = merge.partition(" ")
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            raise BadInput(f"the model's tokenizer is damaged: it merges {merge[:80]!r}, which are no tokens of it")
        merges.append((left, right))
    return merges


def _bytes_of_tokens(data: TokenizerData) -> list[bytes]:
    byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
    found = []
    for token, kind in zip(data.tokens, data.kinds, strict=True):
        if kind == USER_DEFINED:
            found.append(token.encode())
        elif kind == NORMAL and all(letter in byte_of for letter in token):
            found.append(bytes(byte_of[letter] for letter in token))
        else:
            found.append(b"")
    return found


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself where it is printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
