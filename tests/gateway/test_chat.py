"""Chats over HTTP: the same text as without a gateway, in OpenAI's words."""

import json
from typing import Any

import pytest
import trio

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.gateway.limits import GatewayLimits
from p2pgrid.node.answer import Answer
from p2pgrid.node.request import Asker, Request
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.wire.messages import Sampling
from tests.gateway.kit import HELLO, NAME, door
from tests.swarm_kit import MODEL, WHOLE, CountedStage
from tests.toy_model import CONTEXT_MAX, DESCRIPTION


async def alone(request: Request) -> Answer:
    """What one process with all layers answers."""
    asker = Asker(DESCRIPTION, StageSettings(), PipelineSettings(prefill_chunk=8))
    stage = CountedStage(WHOLE, 1, context_max=CONTEXT_MAX)
    return await asker.locally(stage, InlineExecutor(), request, lambda piece: None)


def text_of(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def test_a_chat_answers_what_one_process_answers(autojump_clock: object) -> None:
    wanted = await alone(Request("hello", max_tokens=12))
    async with door() as here:
        reply = await here.chat(max_tokens=12)
    assert reply.status == 200
    (choice,) = reply.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert choice["finish_reason"] == wanted.finish_reason
    usage = reply.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (wanted.prompt_tokens, len(wanted.token_ids))
    assert [hop["layers"] for hop in choice["p2pgrid"]["route"]] == [[0, 5], [5, 10]]


async def test_a_stream_says_the_same_piece_by_piece(autojump_clock: object) -> None:
    async with door() as here:
        whole = await here.chat(max_tokens=12)
        streamed = await here.chat(max_tokens=12, stream=True, stream_options={"include_usage": True})
    events = streamed.events
    assert text_of(events) == whole.json["choices"][0]["message"]["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len(events) > 6
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole.json["usage"]["completion_tokens"]
    assert all(event["usage"] is None for event in events[:-1])
    (last,) = events[-2]["choices"]
    assert last["finish_reason"] == whole.json["choices"][0]["finish_reason"]
    assert len(last["p2pgrid"]["route"]) == 2


async def test_each_part_of_a_stream_says_how_many_tokens_its_choice_has_if_that_is_wanted(
    autojump_clock: object,
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with door() as here:
        chat = (await here.chat(max_tokens=6, n=2, stream=True, stream_options=options)).events
        text = (await here.complete(max_tokens=6, n=2, stream=True, stream_options=options)).events
    for events in (chat, text):
        prompt = events[-1]["usage"]["prompt_tokens"]
        for index in (0, 1):
            usages = [event["usage"] for event in events[:-1] if event["choices"][0]["index"] == index]
            counts = [usage["completion_tokens"] for usage in usages]
            assert counts == sorted(counts), "none is counted twice"
            assert len(set(counts)) > 3, "they come as the answer grows"
            assert usages[-1] == {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6}
        assert events[-1]["usage"]["completion_tokens"] == 12


async def test_a_seed_draws_the_same_answer_again_and_each_choice_another_one(autojump_clock: object) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 5}
    async with door() as here:
        first = (await here.chat(**settings, n=2)).json["choices"]
        again = (await here.chat(**settings)).json["choices"]
        streamed = (await here.chat(**settings, n=2, stream=True)).events
        other = (await here.chat(**{**settings, "seed": -6})).json["choices"]
    texts = [choice["message"]["content"] for choice in first]
    assert again[0]["message"]["content"] == texts[0] != texts[1]
    assert [text_of(streamed, 0), text_of(streamed, 1)] == texts
    assert other[0]["message"]["content"] != texts[0]
    wanted = await alone(Request("hello", max_tokens=12, sampling=Sampling(temperature=0.9, seed=6)))
    assert texts[1] == wanted.text


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(autojump_clock: object) -> None:
    whole = (await alone(Request("hello", max_tokens=12))).text
    stop = whole[4:6]
    async with door() as here:
        for wanted in (stop, [stop, "never"]):
            reply = await here.chat(max_tokens=12, stop=wanted)
            (choice,) = reply.json["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


async def test_log_probabilities_come_with_each_token_streamed_or_not(autojump_clock: object) -> None:
    async with door() as here:
        whole = (await here.chat(max_tokens=6, logprobs=True, top_logprobs=3)).json["choices"][0]
        events = (await here.chat(max_tokens=6, logprobs=True, top_logprobs=3, stream=True)).events
        bare = (await here.chat(max_tokens=6, logprobs=True)).json["choices"][0]
    content = whole["logprobs"]["content"]
    assert len(content) == 6
    data = bytes(byte for token in content for byte in token["bytes"])
    assert data.decode("utf-8", "replace") == whole["message"]["content"]
    for token in content:
        likeliest = token["top_logprobs"][0]
        assert likeliest["token"] == token["token"], "greedy"
        assert likeliest["logprob"] == pytest.approx(token["logprob"])
        assert len(token["top_logprobs"]) == 3
    streamed = [token for event in events for token in (event["choices"][0]["logprobs"] or {}).get("content", [])]
    assert streamed == content
    assert [token["top_logprobs"] for token in bare["logprobs"]["content"]] == [[]] * 6


async def test_penalties_and_biases_change_the_answer_as_they_do_in_one_process(autojump_clock: object) -> None:
    plain = await alone(Request("hello", max_tokens=8))
    first = plain.token_ids[0]
    sampling = Sampling(presence_penalty=1.5, frequency_penalty=0.5, logit_bias=((first, -100.0),))
    wanted = await alone(Request("hello", max_tokens=8, sampling=sampling))
    async with door() as here:
        reply = await here.chat(
            max_tokens=8, presence_penalty=1.5, frequency_penalty=0.5, logit_bias={str(first): -100}
        )
    assert reply.json["choices"][0]["message"]["content"] == wanted.text != plain.text


async def test_an_answer_whose_model_may_not_end_it_has_all_the_tokens_that_were_asked_for(
    autojump_clock: object,
) -> None:
    (stop,) = DESCRIPTION.tokenizer.stops
    async with door() as here:
        for ask in (here.chat, here.complete):
            ended = (await ask(max_tokens=5, logit_bias={str(stop): 100})).json
            ignored = (await ask(max_tokens=5, logit_bias={str(stop): 100}, ignore_eos=True)).json
            assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
            assert (ignored["choices"][0]["finish_reason"], ignored["usage"]["completion_tokens"]) == ("length", 5)


async def test_an_answer_is_held_to_its_schema_as_in_one_process(autojump_clock: object) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = await alone(Request("hello", max_tokens=60, json_schema=json.dumps(schema, separators=(",", ":"))))
    async with door() as here:
        held = await here.chat(
            max_tokens=60, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        )
        free = await here.chat(max_tokens=4, response_format={"type": "text"})
        some = await here.chat(max_tokens=40, response_format={"type": "json_object"})
    assert held.json["choices"][0]["message"]["content"] == wanted.text
    assert json.loads(wanted.text)["a"] in ("x", "y")
    assert free.status == 200
    assert some.json["choices"][0]["message"]["content"].lstrip().startswith("{")


async def test_content_may_come_in_parts_and_the_developers_word_is_the_systems(autojump_clock: object) -> None:
    plain = [{"role": "system", "content": "Be kind."}, *HELLO]
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    async with door() as here:
        replies = [
            await here.chat(messages=messages, max_tokens=4)
            for messages in (
                plain,
                [{"role": "system", "content": parts}, *HELLO],
                [{**plain[0], "role": "developer"}, *HELLO],
            )
        ]
    assert len({reply.json["choices"][0]["message"]["content"] for reply in replies}) == 1


async def test_an_answer_goes_back_into_the_conversation_as_it_came(autojump_clock: object) -> None:
    async with door() as here:
        message = (await here.chat(max_tokens=4)).json["choices"][0]["message"]
        reply = await here.chat(messages=[*HELLO, message, *HELLO], max_tokens=4)
    assert reply.status == 200


async def test_a_model_is_called_by_its_name_or_its_id(autojump_clock: object) -> None:
    async with door() as here:
        assert (await here.chat(model=MODEL, max_tokens=2)).json["model"] == NAME
        unknown = await here.chat(model="gpt-4")
    assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (404, "model_not_found", "model")
    assert "toy" in unknown.error["message"]


# ── a client who goes away, one who is slow, and a stage that is lost ────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_ends_when_its_client_goes_away(stream: bool, autojump_clock: object) -> None:
    async with door(cost_s=0.01) as here, trio.open_nursery() as tasks:
        call = here.begin_chat(tasks, max_tokens=200, stream=stream)
        await trio.sleep(0.5)
        assert here.sessions_open == [1, 1]
        call.gone.set()
        await trio.sleep(0.2)
        assert here.sessions_open == [0, 0]
        assert [answer.state for answer in here.gateway.activity.answers()] == ["cancelled"]
    assert not call.reply.complete


async def test_a_reader_that_takes_nothing_holds_no_row_and_gets_all_of_it_later(autojump_clock: object) -> None:
    async with door() as here, trio.open_nursery() as tasks:
        slow = here.begin_chat(tasks, max_tokens=60, stream=True)
        slow.stalled = True
        await trio.sleep(5)
        assert here.sessions_open == [0, 0]
        quick = await here.chat(max_tokens=60)
        slow.stalled = False
        slow.resume.set()
        await trio.sleep(1)
    assert text_of(slow.reply.events) == quick.json["choices"][0]["message"]["content"]
    assert len(slow.reply.events) < 6, "what had come meanwhile comes at once"


async def test_an_answer_that_loses_a_stage_streams_on(autojump_clock: object) -> None:
    wanted = await alone(Request("hello", max_tokens=40))
    async with door(4, cost_s=0.01) as here, trio.open_nursery() as tasks:
        call = here.begin_chat(tasks, max_tokens=40, stream=True)
        await call.heard(1000)
        (answer,) = here.gateway.activity.answers()
        here.network.kill(answer.route[1].peer)
    assert text_of(call.reply.events) == wanted.text
    (choice,) = call.reply.events[-1]["choices"]
    assert len(choice["p2pgrid"]["recoveries"]) == 1


async def test_too_many_answers_at_once_are_told_to_come_again(autojump_clock: object) -> None:
    async with door(limits=GatewayLimits(answers_max=2), cost_s=0.01) as here, trio.open_nursery() as tasks:
        for _ in range(2):
            tasks.start_soon(lambda: here.chat(max_tokens=50))
        await trio.sleep(0.2)
        refused = await here.chat()
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.error["type"] == "rate_limit_error"


async def test_layers_that_nobody_serves_are_named(autojump_clock: object) -> None:
    async with door(1) as here:
        reply = await here.chat(stream=True)
    assert reply.status == 503
    assert "5:10" in reply.error["message"]
    assert reply.error["code"] == "no_route"


async def test_a_gateway_that_stops_says_so_in_the_stream(autojump_clock: object) -> None:
    async with door(cost_s=0.01) as here, trio.open_nursery() as tasks:
        call = here.begin_chat(tasks, max_tokens=200, stream=True)
        await call.heard(1)
        await here.gateway.stop()
    assert call.reply.complete
    assert call.reply.events[-1]["error"]["code"] == "stopping"


async def test_an_answer_that_takes_too_long_is_cut_short(autojump_clock: object) -> None:
    async with door(limits=GatewayLimits(request_s_max=0.5), cost_s=0.05) as here:
        reply = await here.chat(max_tokens=200)
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        await trio.sleep(0.2)
        assert here.sessions_open == [0, 0]


async def test_activity_shows_an_answer_from_its_route_to_its_end(autojump_clock: object) -> None:
    async with door(cost_s=0.01) as here, trio.open_nursery() as tasks:
        here.begin_chat(tasks, max_tokens=3)
        states: list[str] = []
        while "finished" not in states:
            await trio.sleep(0.001)
            answers = here.gateway.activity.answers()
            states += [answer.state for answer in answers]
        (answer,) = answers
        assert states[0] == "waiting"
        assert "running" in states
        assert (answer.tokens, len(answer.route), answer.model) == (3, 2, MODEL)
