"""What a gateway does not do is refused by name, in OpenAI's shape, and what is too much before it is taken."""

import json
from typing import Any

import pytest
import trio

from p2pgrid.gateway.limits import GatewayLimits
from tests.gateway.kit import HELLO, NAME, Call, door

BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 65}, "n"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"store": True}, "store"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(300)}, "ignore_eos": True}, "logit_bias"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"functions": []}, "functions"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"nonsense": 1}, "nonsense"),
    ({"model": None}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=str)
async def test_a_wrong_field_of_a_chat_is_named(fields: dict[str, Any], param: str, autojump_clock: object) -> None:
    async with door(0) as here:
        reply = await here.chat(**fields)
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)


NO_SCHEMAS: dict[str, dict[str, Any]] = {
    "not compiled": {"type": "nothing"},
    "not supported": {"not": {"type": "string"}},
    "a damaged pattern": {"type": "string", "pattern": "(a"},
    "no document fits": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "too many states": {"type": "integer", "multipleOf": 999_983},
    "too many parts": {"allOf": [{}] * 1100},
    "too long": {"const": "x" * 16_384},
    "a way around the limits": {"x-guidance": {"lenient": True}},
}
DEAD_END = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}}
"""Found out behind the bracket that opens the list."""


def held_to(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_cannot_be_kept_to_is_refused_before_a_stage_is_asked(
    stream: bool, autojump_clock: object
) -> None:
    async with door(0) as here:
        for why, schema in NO_SCHEMAS.items():
            reply = await here.chat(**held_to(schema), stream=stream, n=2)
            assert (reply.status, reply.error["type"]) == (400, "invalid_request_error"), why
            assert (reply.error["param"], reply.error["code"]) == ("response_format", "invalid_value")


async def test_a_schema_that_turns_out_to_have_no_document_is_not_blamed_on_the_stages(autojump_clock: object) -> None:
    async with door() as here:
        whole = await here.chat(**held_to(DEAD_END))
        streamed = (await here.chat(**held_to(DEAD_END), stream=True)).events[-1]
        assert whole.status == 400
        for error in (whole.error, streamed["error"]):
            assert (error["param"], error["type"]) == ("response_format", "invalid_request_error")
        assert not here.gateway.peer.avoidance.avoided(trio.current_time())
        with trio.fail_after(60):
            while any(here.sessions_open):  # noqa: ASYNC110 - nobody tells; canaries come and go too
                await trio.sleep(0.1)


BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a"] * 65}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"suffix": "after"}, "suffix"),
    ({"messages": HELLO}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_COMPLETIONS, ids=str)
async def test_a_wrong_field_of_a_text_is_named(fields: dict[str, Any], param: str, autojump_clock: object) -> None:
    async with door(0) as here:
        reply = await here.complete(**fields)
    assert (reply.status, reply.error["type"], reply.error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize("prompt", ["", [999_999], "word " * 400])
async def test_a_prompt_that_no_model_could_take_is_refused(prompt: Any, autojump_clock: object) -> None:
    async with door(0) as here:
        reply = await here.complete(prompt=prompt)
    assert reply.status == 400


async def test_a_prompt_longer_than_the_context_has_the_code_that_clients_look_for(autojump_clock: object) -> None:
    async with door(0) as here:
        reply = await here.chat(messages=[{"role": "user", "content": "x" * 400}])
    assert reply.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b"[" * 100_000])
async def test_what_is_no_json_object_is_refused(body: bytes, autojump_clock: object) -> None:
    async with door(0) as here:
        for path in ("/v1/chat/completions", "/v1/completions"):
            reply = await here.post(path, body)
            assert reply.status == 400, reply.body
            assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_that_a_browser_sends_for_a_stranger_is_refused(media_type: str, autojump_clock: object) -> None:
    async with door(0) as here:
        reply = await here.post("/v1/chat/completions", {"model": NAME, "messages": HELLO}, content_type=media_type)
    assert reply.status == 415


async def test_a_body_that_is_too_long_is_refused_and_not_kept(autojump_clock: object) -> None:
    async with door(0, limits=GatewayLimits(body_bytes_max=1000)) as here:
        fits = await here.post("/v1/chat/completions", b" " * 1000)
        reply = await here.post("/v1/chat/completions", b" " * 1001)
    assert (fits.status, reply.status) == (400, 413)
    assert "1000 bytes" in reply.error["message"]


async def test_a_body_that_does_not_come_is_not_waited_for(autojump_clock: object) -> None:
    async with door(0) as here:
        call = Call()
        with trio.fail_after(60):
            reply = await here.ask("POST", "/v1/chat/completions", None, call=call, headers={})
    assert (reply.status, reply.error["code"]) == (408, "body_timeout")


async def test_paths_and_methods_that_do_not_exist_are_refused_in_the_same_shape(autojump_clock: object) -> None:
    async with door(0) as here:
        assert (await here.get("/v1/nothing")).error["code"] == "unknown_url"
        refused = await here.get("/v1/chat/completions")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert refused.error


async def test_embeddings_are_refused_by_name(autojump_clock: object) -> None:
    async with door() as here:
        reply = await here.post("/v1/embeddings", {"model": NAME, "input": "x"})
        unknown = await here.post("/v1/embeddings", {"model": "other", "input": "x"})
    assert (reply.status, reply.error["code"]) == (404, "no_embeddings")
    assert NAME in reply.error["message"]
    assert unknown.status == 404


async def test_a_defect_is_an_error_document_and_the_log_tells_nothing_of_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], autojump_clock: object
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("my secret is 1234")

    async with door() as here:
        asker = await here.gateway.models.asker(here.gateway.models.find(NAME)[0])
        monkeypatch.setattr(asker, "prompt_ids", broken)
        call, body = Call(), json.dumps({"model": NAME, "messages": HELLO}).encode()
        with pytest.raises(RuntimeError):
            await here.ask("POST", "/v1/chat/completions", body, call=call)
    assert call.reply.status == 500
    assert "secret" not in call.reply.error["message"]
    shown = capsys.readouterr()
    assert "secret" not in shown.out + shown.err
    assert "test_refusals.py" in shown.out + shown.err
