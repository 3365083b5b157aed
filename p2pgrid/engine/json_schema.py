"""Answers that fit a JSON schema: which tokens may come next. The one module that knows llguidance.

A schema comes from anybody, so what it may cost is limited before it is compiled: llguidance bounds most of that by
itself, but nesting through `$ref` takes its native stack, and `multipleOf` a state for each remainder.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from p2pgrid.engine.stage import Executor
from p2pgrid.errors import BadSchema, LocalFault
from p2pgrid.wire.manifest import TokenizerData
from p2pgrid.wire.messages import SCHEMA_CHARS_MAX

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CONTAINERS_MAX = 1024
"""Objects and lists in a schema. Each may be one level of nesting, of which some 800 fill a thread's stack."""
REMAINDERS_MAX = 10_000
"""Product of all `multipleOf`; 0.1 s to compile."""
LEXER_STATES_MAX = 10_000
"""Memory of one answer's grammar, at 1 to 2 kB each."""
STEP_ITEMS_MAX = 20_000
"""Work for one token; about 1 ms."""
COMPILED_MAX = 8
"""Schemas that stay compiled, the least recently used giving way."""
WHITESPACE = r"[ \n]{0,20}"
"""Between the parts of a document. Where there is no limit, small models go on with spaces for ever."""


class JsonGrammar:
    """Which tokens of one answer may come next; see `core.drawing.Grammar`."""

    def __init__(self, beginning: "LLMatcher", vocab: int, stops: Sequence[int]) -> None:
        """`beginning` has consumed nothing, and never will; `stops` are the tokens that end an answer."""
        self._vocab = vocab
        self._stops = frozenset(stops)
        self._matcher = beginning.deep_copy()
        self._consumed: list[int] = []

    def allowed(self, answer: list[int]) -> npt.NDArray[np.bool_]:
        """`[vocab]`: what may stand behind `answer`; behind a whole document a token that ends the answer.

        Raises LocalFault for an answer that does not fit the schema, or when the schema turns out to cost too much.
        """
        self.follow(answer)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, count=self._vocab, bitorder="little").astype(bool)
        if self._matcher.is_error() or not allowed.any():
            raise self._fault()
        return allowed

    def follow(self, answer: list[int]) -> None:
        """Be where `answer` leads, so that `allowed` has little to do. Raises as that."""
        common = len(self._consumed)
        if answer[:common] != self._consumed:
            pairs = zip(self._consumed, answer, strict=False)
            common = next((at for at, (before, now) in enumerate(pairs) if before != now), min(common, len(answer)))
            self._matcher.rollback(len(self._consumed) - common)
            del self._consumed[common:]
        for token in answer[common:]:  # one by one, so that other threads get their turn in between
            if token in self._stops and self._matcher.is_accepting():
                return  # not consumed: behind an end nothing comes but another one, and it cannot be rolled back
            if not self._matcher.consume_token(token):
                raise self._fault()
            self._consumed.append(token)

    def _fault(self) -> LocalFault:
        return LocalFault(f"the answer cannot go on within its JSON schema: {_one_line(self._matcher.get_error())}")


class JsonGrammars:
    """Compiles JSON schemas for the tokens of one model, in a lane of its own: half a second at worst."""

    def __init__(self, tokenizer: TokenizerData, executor: Executor) -> None:
        self._data = tokenizer
        self._executor = executor
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    async def grammar(self, schema: str) -> JsonGrammar:
        """For one answer. Raises BadSchema for a schema that is none, is not supported, or would cost too much."""
        return await self._executor.run(lambda: self._grammar(schema))

    async def check(self, grammar: JsonGrammar, answer: list[int]) -> None:
        """Raises BadSchema when nothing may stand behind `answer`: no stage could go on with it."""
        await self._executor.run(lambda: _check_end(grammar, answer))

    def _grammar(self, schema: str) -> JsonGrammar:
        if schema not in self._compiled:
            self._compiled[schema] = self._compile(schema)
            if len(self._compiled) > COMPILED_MAX:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(schema)
        return JsonGrammar(self._compiled[schema], self._tokens.vocab_size, self._data.stops)

    def _compile(self, schema: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        _check_cost(schema)
        limits = LLParserLimits(max_lexer_states=LEXER_STATES_MAX, step_max_items=STEP_ITEMS_MAX, verbose_errors=False)
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
            matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        except ValueError as error:
            raise BadSchema(f"the JSON schema cannot be used: {_one_line(str(error))}") from error
        if matcher.is_error():
            raise BadSchema(f"the JSON schema cannot be used: {_one_line(matcher.get_error())}")
        _check_end(JsonGrammar(matcher, self._tokens.vocab_size, self._data.stops), [])
        return matcher

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        """0.3 s and 20 MB; most nodes never need it."""
        from llguidance import LLTokenizer, TokenizerWrapper

        slices = LLTokenizer.json_slices()
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._data)), eos_token=list(self._data.stops), slices=slices)


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, data: TokenizerData) -> None:
        if not data.stops:
            raise BadSchema("this model has no token that ends an answer, so none can be held to a JSON schema")
        from p2pgrid.engine.tokenizer import Tokenizer  # 5 MB of libraries

        self._tokenizer = Tokenizer(data)
        texts = [self._tokenizer.bytes_of(token) for token in range(self._tokenizer.vocab)]
        self.eos_token_id = data.stops[0]
        self.special_token_ids = [token for token, text in enumerate(texts) if not text]
        # No text has the byte 0xff, by which special tokens are told apart.
        self.tokens = [text or b"\xff[%d]" % token for token, text in enumerate(texts)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), special=False)


def _check_cost(schema: str) -> None:
    """Raises BadSchema for what is no schema, or for one that llguidance must not be given."""
    if len(schema) > SCHEMA_CHARS_MAX:
        raise BadSchema(f"the JSON schema has {len(schema)} characters: {SCHEMA_CHARS_MAX} are allowed")
    try:
        document = msgspec.json.decode(schema)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadSchema(f"the JSON schema is no JSON: {_one_line(str(error))}") from error
    if not isinstance(document, dict):
        raise BadSchema("a JSON schema is an object")
    containers = list(_containers(document))
    if len(containers) > CONTAINERS_MAX:
        raise BadSchema(f"the JSON schema has {len(containers)} objects and lists: {CONTAINERS_MAX} are allowed")
    objects = [one for one in containers if isinstance(one, dict)]
    if any("x-guidance" in one for one in objects):
        raise BadSchema("x-guidance is no keyword of JSON schemas")
    divisors = [one["multipleOf"] for one in objects if isinstance(one.get("multipleOf"), int | float)]
    if prod(map(_remainders, divisors)) > REMAINDERS_MAX:
        raise BadSchema("multipleOf in the JSON schema is too large a number, or stands too often")


def _check_end(grammar: JsonGrammar, answer: list[int]) -> None:
    """Some schemas that no document fits are found out only where no token fits. Raises BadSchema there."""
    try:
        grammar.allowed(answer)
    except LocalFault as error:
        no_beginning = "the JSON schema cannot be used: no document fits it, or to begin one costs too much"
        raise BadSchema(str(error) if answer else no_beginning) from error


def _containers(document: Any) -> Iterator[Any]:
    rest = [document]
    while rest:
        one = rest.pop()
        if isinstance(one, dict | list):
            yield one
            rest += one.values() if isinstance(one, dict) else one


def _remainders(divisor: float) -> int:
    """About how many remainders a recogniser of multiples must tell apart: 25 for 25, 2.5 and 0.25."""
    _, digits, exponent = Decimal(str(divisor)).as_tuple()
    if not isinstance(exponent, int) or exponent > 4:
        return REMAINDERS_MAX + 1
    return max(int("".join(map(str, digits)) + "0" * exponent), 1)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "there is no token that fits"
