"""The loop of a request: text as it streams, the times of tokens, and scores."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import trio

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import SendStep
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.errors import BadInput, PeerMisbehaved
from p2pgrid.node.answer import Answer, Piece, score
from p2pgrid.services.local import LocalSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import Scores, Token
from p2pgrid.wire.tensors import pack_floats, pack_ints
from tests import toy_tokenizer
from tests.swarm_kit import (
    CHUNK,
    CONTEXT_MAX,
    GREEDY,
    MODEL,
    PROMPT,
    SEEDED,
    SESSION,
    WHOLE,
    CountedStage,
    alone,
    answer_of,
    generation,
    open_chain,
    texts,
)


def one_process(cost_s: float = 0.0) -> LocalSession:
    return LocalSession(CountedStage(WHOLE, 1), InlineExecutor(cost_s), Drawer(SEEDED))


def dictated(pieces: list[bytes]) -> Callable[[int], bytes]:
    """Whatever the tokens are, their bytes are these, one after another."""
    rest = iter(pieces)
    return lambda token: next(rest)


def single_bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_text_is_shown_in_whole_characters_as_soon_as_they_are_certain() -> None:
    text = "aé✓🚗z"
    shown: list[str] = []
    pieces = single_bytes(text)
    answer = await answer_of(
        one_process(), generation(max_tokens=len(pieces), run_ahead=False), dictated(pieces), show=texts(shown)
    )
    assert shown == list(text)
    assert answer.text == text
    assert answer.finish_reason == "length"
    assert answer.token_ids == (await alone(SEEDED, max_tokens=16))[: len(pieces)]


async def test_every_token_is_shown_as_it_comes_with_the_text_that_it_makes_certain() -> None:
    pieces = [b"a", b"\xc3", b"\xa9 s", b"t", b"!"]
    shown: list[Piece] = []
    wanted = generation(max_tokens=len(pieces), run_ahead=False)
    answer = await answer_of(one_process(), wanted, dictated(pieces), stop=["stop"], show=shown.append)
    assert [piece.text for piece in shown] == ["a", "", "é ", "", "st!"]
    assert [piece.token and piece.token.data for piece in shown] == pieces
    assert [piece.token and piece.token.token for piece in shown] == answer.token_ids


async def test_half_a_character_at_the_end_is_shown_as_a_replacement() -> None:
    shown: list[str] = []
    answer = await answer_of(
        one_process(), generation(max_tokens=2, run_ahead=False), dictated([b"a", b"\xe2"]), show=texts(shown)
    )
    assert shown == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert answer.text == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("parts", [0, 3], ids=["one process", "three stages"])
async def test_a_stop_string_ends_the_answer_and_is_not_shown(parts: int, autojump_clock: trio.abc.Clock) -> None:
    pieces = [b"one ", b"two st", b"op", b" three", *[b"."] * 20]
    shown: list[str] = []
    if parts:
        async with open_chain(parts) as chain:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                answer = await answer_of(
                    session, generation(max_tokens=24), dictated(pieces), stop=["stop"], show=texts(shown)
                )
            await trio.sleep(1)
            assert chain.rows_taken == [0] * parts, "what runs ahead is closed too"
    else:
        wanted = generation(max_tokens=24, run_ahead=False)
        answer = await answer_of(one_process(), wanted, dictated(pieces), stop=["stop"], show=texts(shown))
    assert "".join(shown) == answer.text == "one two "
    assert answer.finish_reason == "stop"
    assert len(answer.token_ids) == 3


async def test_a_stop_string_in_the_last_token_allowed_is_a_stop() -> None:
    answer = await answer_of(
        one_process(), generation(max_tokens=2, run_ahead=False), dictated([b"a", b"b."]), stop=["."]
    )
    assert answer.text == "ab"
    assert answer.finish_reason == "stop"


async def test_what_might_have_begun_a_stop_string_is_shown_at_the_end() -> None:
    shown: list[str] = []
    answer = await answer_of(
        one_process(),
        generation(max_tokens=2, run_ahead=False),
        dictated([b"a", b"st"]),
        stop=["stop"],
        show=texts(shown),
    )
    assert shown == ["a", "st"]
    assert (answer.text, answer.finish_reason) == ("ast", "length")


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
@pytest.mark.parametrize("parts", [1, 3])
async def test_no_more_than_the_tokens_asked_for(parts: int, max_tokens: int, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(parts) as chain:
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
            answer = await answer_of(session, generation(max_tokens=max_tokens))
            await trio.sleep(1)
        assert answer.token_ids == await alone(SEEDED, max_tokens=max_tokens)
        assert answer.finish_reason == "length"
        assert answer.prompt_tokens == len(PROMPT)
        assert answer.route == chain.route
        computed = chain.stages[0].steps
        assert computed == len(generation().start()) + max_tokens - 1, "the last token is shown and never run"


async def test_the_context_ends_an_answer_that_asks_for_more(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
        answer = await answer_of(session, generation(max_tokens=1000))
    assert len(answer.token_ids) == CONTEXT_MAX - len(PROMPT)
    assert answer.finish_reason == "length"


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_times_are_those_of_the_tokens(autojump_clock: trio.abc.Clock) -> None:
    wanted = generation(max_tokens=5, run_ahead=False)
    first_s = 0.25 * len(wanted.start())
    await trio.sleep(100)
    answer = await answer_of(one_process(0.25), wanted)
    assert answer.token_times_s == pytest.approx([first_s + 0.25 * i for i in range(5)])
    assert answer.ttft_s == pytest.approx(first_s)
    assert answer.decode_tokens_per_s == pytest.approx(4.0)


def test_an_answer_of_fewer_than_two_tokens_has_no_rate() -> None:
    assert Answer(1).ttft_s == 0.0
    assert Answer(1).decode_tokens_per_s == 0.0
    assert Answer(1, token_times_s=[0.5]).decode_tokens_per_s == 0.0


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────


def expected_scores(ids: list[int]) -> tuple[list[float], list[int]]:
    """From one pass over the whole text, in plain numpy."""
    logits = CountedStage(WHOLE, 1).step(0, 0, np.array(ids, np.int32), None, len(ids)).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return [float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)], logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("length", [2, CHUNK, CHUNK + 1, 2 * CHUNK + 1, CONTEXT_MAX])
@pytest.mark.parametrize("parts", [0, 1, 3], ids=["one process", "one stage", "three stages"])
async def test_scores_equal_a_direct_computation(parts: int, length: int, autojump_clock: trio.abc.Clock) -> None:
    ids = [(31 * i + 5) % 256 for i in range(length)]
    if parts:
        async with open_chain(parts) as chain, chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
            scored = await score(session, ids, context_max=CONTEXT_MAX, chunk=CHUNK)
    else:
        scored = await score(one_process(), ids, context_max=CONTEXT_MAX, chunk=CHUNK)
    logprobs, top1 = expected_scores(ids)
    assert scored.token_ids == ids
    assert scored.next_logprobs == pytest.approx(logprobs, abs=1e-5)
    assert scored.top1 == top1
    assert scored.mean_nll == pytest.approx(-math.fsum(logprobs) / len(logprobs), abs=1e-5)


@pytest.mark.parametrize(
    ("length", "why"), [(0, "no next token"), (1, "no next token"), (CONTEXT_MAX + 1, "the context holds")]
)
async def test_a_text_that_cannot_be_scored_is_bad_input(length: int, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        await score(one_process(), [1] * length, context_max=CONTEXT_MAX, chunk=CHUNK)


class _WrongAnswers(LocalSession):
    """Answers each step with what the test has it say."""

    def __init__(self, answers: list[Token | Scores]) -> None:
        super().__init__(CountedStage(WHOLE, 1), InlineExecutor(), Drawer(GREEDY))
        self.rest = answers

    async def send(self, step: SendStep) -> None:
        pass

    async def receive(self) -> Token | Scores:
        return self.rest.pop(0)


def token_of(token: int = 4, logprob: float | None = -0.5, ids: Sequence[int] = (4, 9), top: int = 2) -> Token:
    values = pack_floats(np.array([-0.5, -1.0, -2.0][:top], np.float32))
    return Token(SESSION, 0, len(PROMPT), token, logprob, pack_ints(ids), values)


@pytest.mark.parametrize(
    "answer",
    [
        token_of(logprob=None),
        token_of(logprob=math.nan),
        token_of(ids=(4,)),
        token_of(ids=(4, 9, 1), top=3),
        token_of(top=1),
        token_of(ids=(4, 256)),
        token_of(ids=(4, -1)),
        token_of(token=256),
    ],
    ids=["none", "no number", "too few", "too many", "fewer values", "no such token", "no id", "a token of no model"],
)
async def test_log_probabilities_that_were_not_asked_for_are_misbehaviour(answer: Token) -> None:
    tokenizer = Tokenizer(toy_tokenizer.TOKENIZER)
    with pytest.raises(PeerMisbehaved, match="the pipeline"):
        await answer_of(_WrongAnswers([answer]), generation(), tokenizer.bytes_of, logprobs=2)
    await answer_of(_WrongAnswers([token_of()]), generation(max_tokens=1), tokenizer.bytes_of, logprobs=2)


def scores_of(position: int, count: int, logprobs: int | None = None) -> Scores:
    values = np.zeros(count if logprobs is None else logprobs, np.float32)
    return Scores(SESSION, 0, position, pack_ints([1] * count), pack_floats(values))


@pytest.mark.parametrize(
    "answer",
    [Token(SESSION, 0, 4, 1), scores_of(1, 4), scores_of(0, 3), scores_of(0, 5), scores_of(0, 4, logprobs=3)],
    ids=["a token", "another position", "too few", "too many", "fewer log-probabilities"],
)
async def test_scores_that_were_not_asked_for_are_misbehaviour(answer: Token | Scores) -> None:
    with pytest.raises(PeerMisbehaved, match="did not score"):
        await score(_WrongAnswers([answer]), [1, 2, 3, 4], context_max=CONTEXT_MAX, chunk=CHUNK)


async def test_scores_where_a_token_was_asked_for_are_misbehaviour() -> None:
    with pytest.raises(PeerMisbehaved, match="scores where a token"):
        await answer_of(_WrongAnswers([scores_of(0, 4)]), generation())
