"""Completions over HTTP: prompts of every kind, as they stand."""

from typing import Any

import pytest

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.node.request import Asker
from p2pgrid.settings import PipelineSettings, StageSettings
from tests.gateway.kit import door
from tests.swarm_kit import WHOLE, CountedStage
from tests.toy_model import CONTEXT_MAX, DESCRIPTION
from tests.toy_tokenizer import FIRST_BYTE

IDS = [FIRST_BYTE + byte for byte in b"hello"]


def texts(document: Any) -> list[str]:
    return [choice["text"] for choice in sorted(document["choices"], key=lambda choice: choice["index"])]


async def test_texts_and_token_ids_are_continued_alike(autojump_clock: object) -> None:
    async with door() as here:
        replies = [await here.complete(prompt=prompt) for prompt in ("hello", ["hello"], IDS, [IDS])]
    assert [reply.status for reply in replies] == [200] * 4
    assert len({reply.json["choices"][0]["text"] for reply in replies}) == 1
    usage = replies[0].json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 16, 21)


async def test_a_whole_number_may_be_written_with_a_point(autojump_clock: object) -> None:
    async with door() as here:
        assert (await here.complete(prompt=[float(token) for token in IDS], max_tokens=2.0)).status == 200
        assert (await here.complete(max_tokens=2.5)).error["param"] == "max_tokens"


async def test_several_prompts_are_answered_in_their_order_each_n_times(autojump_clock: object) -> None:
    settings: dict[str, Any] = {"max_tokens": 6, "temperature": 0.8, "seed": 3}
    async with door() as here:
        one = [(await here.complete(prompt=prompt, n=2, **settings)).json for prompt in ("hello", "world")]
        both = (await here.complete(prompt=["hello", "world"], n=2, **settings)).json
    assert texts(both) == texts(one[0]) + texts(one[1])
    assert len(set(texts(both))) == 4
    assert both["usage"]["prompt_tokens"] == 10


async def test_echo_gives_the_prompt_back_before_the_answer_streamed_or_not(autojump_clock: object) -> None:
    async with door() as here:
        plain = (await here.complete(max_tokens=6)).json
        echoed = (await here.complete(max_tokens=6, echo=True)).json
        events = (await here.complete(prompt=IDS, max_tokens=6, echo=True, stream=True)).events
    assert texts(echoed)[0] == "hello" + texts(plain)[0]
    assert "".join(event["choices"][0]["text"] for event in events) == texts(echoed)[0]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in event for event in events)


async def test_more_choices_than_run_at_once_are_answered_all_the_same(autojump_clock: object) -> None:
    async with door(rows=3) as here:
        reply = await here.complete(prompt=["hello"] * 20, max_tokens=2)
    assert len(reply.json["choices"]) == 20
    assert len(set(texts(reply.json))) == 1


async def test_a_prompt_is_scored_as_by_one_process_with_an_answer_or_without(autojump_clock: object) -> None:
    asker = Asker(DESCRIPTION, StageSettings(), PipelineSettings(prefill_chunk=8))
    stage = CountedStage(WHOLE, 1, context_max=CONTEXT_MAX)
    wanted = await asker.score_locally(stage, InlineExecutor(), "hello", top=2)
    async with door() as here:
        scored = (await here.complete(echo=True, logprobs=2, max_tokens=0)).json
        answered = (await here.complete(echo=True, logprobs=2, max_tokens=3)).json
        events = (await here.complete(echo=True, logprobs=2, max_tokens=3, stream=True)).events
    (choice,) = scored["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello", "length")
    found = choice["logprobs"]
    assert found["tokens"] == list("hello")
    assert found["text_offset"] == [0, 1, 2, 3, 4]
    assert found["token_logprobs"] == [None, *map(pytest.approx, wanted.next_logprobs)]
    assert found["top_logprobs"][0] is None
    assert max(found["top_logprobs"][1].values()) == pytest.approx(wanted.top[0][0].logprob)
    both = answered["choices"][0]["logprobs"]
    assert both["token_logprobs"][:5] == found["token_logprobs"]
    assert len(both["token_logprobs"]) == 8
    assert both["text_offset"][5:6] == [5]
    streamed: dict[str, list[Any]] = {name: [] for name in both}
    for event in events:
        for name, values in (event["choices"][0]["logprobs"] or {}).items():
            streamed[name] += values
    assert streamed == both


async def test_the_first_token_has_no_score_also_where_it_is_the_only_one(autojump_clock: object) -> None:
    async with door() as here:
        reply = await here.complete(prompt="h", echo=True, logprobs=0, max_tokens=0)
    assert reply.json["choices"][0]["logprobs"]["token_logprobs"] == [None]
