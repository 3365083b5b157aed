"""What a model can be asked, in one process and over a swarm of toy stages."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import BadInput, PeerUnavailable
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.answer import Piece
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.peer import Peer
from p2pgrid.node.request import Asker, Chat, ChatMessage, Request, TokenIds
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.wire.messages import Sampling
from tests.swarm_kit import LAYERS, MODEL, SEEDED, WHOLE, CountedStage, Life, cut, joined, living
from tests.toy_model import CONTEXT_MAX, DESCRIPTION
from tests.toy_tokenizer import END, FIRST_BYTE, VOCAB

QUESTION = Request("hello", max_tokens=12, sampling=SEEDED)


def asker() -> Asker:
    return Asker(DESCRIPTION, StageSettings(), PipelineSettings(prefill_chunk=8), InlineExecutor())


def whole() -> CountedStage:
    return CountedStage(WHOLE, 1, context_max=CONTEXT_MAX)


def shown_to_nobody(piece: Piece) -> None:
    pass


async def token_ids_alone(request: Request) -> list[int]:
    return (await asker().locally(whole(), InlineExecutor(), request, shown_to_nobody)).token_ids


@asynccontextmanager
async def swarm(network: MemoryNetwork | None = None) -> AsyncIterator[tuple[Peer, list[Life]]]:
    """A client, and two nodes that serve the toy model."""
    network = network or MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span, context_max=CONTEXT_MAX))
            for number, span in enumerate(cut(2))
        ]
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == 2, 6)
        yield client, lives


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_question_is_a_conversation_of_one_turn() -> None:
    chat = Chat((ChatMessage("user", "hello"),))
    assert asker().prompt_ids(Request("hello")) == asker().prompt_ids(Request(chat))


def test_a_conversation_is_written_in_the_models_template() -> None:
    turns = (ChatMessage("system", "Be kind."), ChatMessage("user", "hi"), ChatMessage("assistant", "hello"))
    ids = asker().prompt_ids(Request(Chat((*turns, ChatMessage("user", "bye")))))
    assert asker().tokenizer.decode(ids) == "system\nBe kind.\nuser\nhi\nassistant\nhello\nuser\nbye\nassistant\n"
    assert ids.count(END) == 4


def test_token_ids_and_raw_texts_go_to_the_model_as_they_are() -> None:
    ids = tuple(FIRST_BYTE + byte for byte in b"hello")
    assert asker().prompt_ids(Request("hello", raw=True)) == list(ids)
    assert asker().prompt_ids(Request(TokenIds((END, *ids)))) == [END, *ids]


@pytest.mark.parametrize("token", [-1, VOCAB, 2**40])
def test_what_is_no_token_of_the_model_is_bad_input(token: int) -> None:
    with pytest.raises(BadInput, match=f"no such token: {token}"):
        asker().check(Request(TokenIds((1, token))))


@pytest.mark.parametrize("prompt", [TokenIds(()), Chat(())])
def test_an_empty_prompt_is_bad_input(prompt: TokenIds | Chat) -> None:
    with pytest.raises(BadInput):
        asker().check(Request(prompt))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_swarm_answers_like_one_process_piece_by_piece(autojump_clock: trio.abc.Clock) -> None:
    shown: list[Piece] = []
    async with swarm() as (client, _):
        answer = await asker().over_swarm(client, QUESTION, shown.append)
    assert answer.token_ids == await token_ids_alone(QUESTION)
    assert [piece.token.token for piece in shown if piece.token] == answer.token_ids
    assert "".join(piece.text for piece in shown) == answer.text


@pytest.mark.parametrize("top", [0, 3, 20])
async def test_log_probabilities_are_those_of_the_model_and_the_same_everywhere(
    top: int, autojump_clock: trio.abc.Clock
) -> None:
    """A swarm's tokens as drawn, one process's, and the scores of the same text."""
    request = replace(QUESTION, logprobs=top)
    near: list[Piece] = []
    far: list[Piece] = []
    answer = await asker().locally(whole(), InlineExecutor(), request, near.append)
    text = TokenIds((*asker().prompt_ids(request), *answer.token_ids))
    scored = await asker().score_locally(whole(), InlineExecutor(), text, top)
    async with swarm() as (client, _):
        await asker().over_swarm(client, request, far.append)
        assert await asker().score_over_swarm(client, text, top) == scored
    assert far == near
    tokens = [piece.token for piece in near if piece.token is not None]
    assert [np.float32(token.logprob or 0) for token in tokens] == scored.next_logprobs[-len(tokens) :]
    assert [token.top for token in tokens] == scored.top[-len(tokens) - 1 : -1]
    assert all(len(token.top) == top for token in tokens)
    assert all(token.data == asker().tokenizer.bytes_of(token.token) for some in scored.top for token in some)


@pytest.mark.parametrize("logprobs", [-1, 21])
async def test_more_alternatives_than_are_told_are_bad_input(logprobs: int) -> None:
    with pytest.raises(BadInput, match="ask for 0 to 20"):
        asker().check(replace(QUESTION, logprobs=logprobs))
    with pytest.raises(BadInput, match="ask for 0 to 20"):
        await asker().score_locally(whole(), InlineExecutor(), "hello", logprobs)


async def test_what_is_guessed_ahead_counts_for_penalties_only_once_it_came_true(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Far apart, a text that says the same again and again is drafted."""
    often = tuple((token, 30.0) for token in range(40, 44))
    punished = replace(QUESTION, max_tokens=60, sampling=Sampling(frequency_penalty=2.0, logit_bias=often))
    async with swarm(MemoryNetwork(random.Random(1), latency_s=0.1)) as (client, lives):
        answer = await asker().over_swarm(client, punished, shown_to_nobody)
        steps = [life.stages[0].steps for life in lives]
    assert answer.token_ids == await token_ids_alone(punished)
    assert len(set(answer.token_ids)) > 2, "penalties have it say something else now and then"
    assert steps[0] > steps[1], "no draft was wrong"


@pytest.mark.parametrize(
    "sampling",
    [Sampling(presence_penalty=2.5), Sampling(logit_bias=((1, 101.0),)), Sampling(logit_bias=((VOCAB, 1.0),))],
)
def test_settings_that_no_stage_takes_are_bad_input(sampling: Sampling) -> None:
    with pytest.raises(BadInput, match=r"presence_penalty|logit_bias|no such token: 256"):
        asker().check(replace(QUESTION, sampling=sampling))


# ── answers in JSON ──────────────────────────────────────────────────────────────────────────────────────

PET = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "legs": {"enum": [2, 4]}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
ABOUT_A_PET = replace(QUESTION, max_tokens=150, json_schema=json.dumps(PET))


@pytest.mark.parametrize("sampling", [Sampling(), SEEDED, Sampling(1.0, seed=4, frequency_penalty=1.0)])
async def test_an_answer_fits_its_schema_and_is_the_same_everywhere(
    sampling: Sampling, autojump_clock: trio.abc.Clock
) -> None:
    request = replace(ABOUT_A_PET, sampling=sampling)
    async with swarm() as (client, _):
        answer = await asker().over_swarm(client, request, shown_to_nobody)
    pet = json.loads(answer.text)
    assert set(pet) == {"name", "legs"} and len(pet["name"]) <= 4 and pet["legs"] in (2, 4)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == await token_ids_alone(request)


async def test_a_schema_that_cannot_be_used_is_bad_input_before_anybody_is_asked(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm() as (client, lives):
        request = replace(QUESTION, json_schema='{"$ref": "http://192.0.2.1/pet.json"}')
        with pytest.raises(BadInput, match="cannot be used"):
            await asker().over_swarm(client, request, shown_to_nobody)
        with pytest.raises(BadInput, match="cannot be used"):
            await asker().locally(whole(), InlineExecutor(), request, shown_to_nobody)
        assert all(not life.stages[0].taken - {0, 1, 2, 3} for life in lives)
        assert not client.links.peers()


@pytest.mark.parametrize("schema", ["{nope", '{"multipleOf": 999983}', '{"type": "array", "items": {"not": {}}}'])
async def test_a_client_that_sends_a_bad_schema_hurts_nobody_but_itself(
    schema: str, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm() as (client, lives):
        route = await wait_for_route(client, MODEL, LAYERS)
        with pytest.raises(PeerUnavailable, match="JSON"):
            async with client.pipeline.open(MODEL, route, Terms(json_schema=schema)):
                pass
        await trio.sleep(0.1)
        assert [life.peer.worker and life.peer.worker.sessions_open for life in lives] == [0, 0]
        assert (await asker().over_swarm(client, QUESTION, shown_to_nobody)).token_ids == await token_ids_alone(
            QUESTION
        )


async def test_a_client_that_writes_the_answer_itself_is_held_to_its_schema_too(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm() as (client, _):
        route = await wait_for_route(client, MODEL, LAYERS)
        prompt = (5, 6, 7)
        terms = Terms(prompt=prompt, json_schema=json.dumps(PET))
        with pytest.raises(PeerUnavailable, match="JSON schema"):
            async with client.pipeline.open(MODEL, route, terms) as session:
                await session.send(SendStep(0, (*prompt, *(FIRST_BYTE + byte for byte in b'{"age')), "token"))
                await session.receive()


async def test_an_answer_that_nobody_waits_for_any_more_is_closed_everywhere(autojump_clock: trio.abc.Clock) -> None:
    async with swarm() as (client, lives):
        with trio.CancelScope() as asking:

            def enough(piece: Piece) -> None:
                asking.cancel()

            await asker().over_swarm(client, Request("hello", max_tokens=100), enough)
        assert asking.cancelled_caught
        await trio.sleep(0.1)
        workers = [life.peer.worker for life in lives]
        assert [worker and worker.sessions_open for worker in workers] == [0, 0]
