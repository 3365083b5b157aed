"""Chats with tools, on a toy model whose chat template has them."""

import json
from typing import Any

import msgspec
import pytest

from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.gateway.calls import CallsOfChoice
from p2pgrid.gateway.tool_calls import OPEN
from p2pgrid.gateway.tools import ToolPlan
from p2pgrid.node.answer import Answer
from p2pgrid.node.client import ModelDescription
from tests.gateway.kit import HELLO, door
from tests.hermes import TEMPLATE
from tests.toy_model import DESCRIPTION


def described(template: str) -> ModelDescription:
    tokenizer = msgspec.structs.replace(DESCRIPTION.tokenizer, chat_template=template)
    return ModelDescription(DESCRIPTION.id, DESCRIPTION.manifest, tokenizer)


BRIEF = """\
{% if tools %}<tool_call>{% for tool in tools %} {{ tool.function.name }}{% endfor %}
{% endif %}
{% for message in messages %}{{ message.role }} {{ message.content }}
{% endfor %}"""
TOOLED = described(BRIEF)
"""Every letter is a token of the toy's, and its context is short."""


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


MADE = '{"name": "door", "arguments": {"where": "in"}}'
LIGHT = tool("light", of(on={"type": "boolean"}))
DOOR = tool("door", of(where={"$ref": "#/$defs/side"}) | {"$defs": {"side": {"enum": ["in", "out"]}}})


async def test_a_call_that_is_required_comes_and_fits_its_schema(autojump_clock: object) -> None:
    async with door(description=TOOLED) as here:
        wanted = {"tools": [LIGHT, DOOR], "tool_choice": "required", "max_tokens": 120}
        any_call = (await here.chat(**wanted)).json["choices"][0]
        named = {**wanted, "tool_choice": {"type": "function", "function": {"name": "door"}}}
        this_call = (await here.chat(**named)).json["choices"][0]
    for choice in (any_call, this_call):
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function"
        arguments = json.loads(call["function"]["arguments"])
        match call["function"]["name"]:
            case "light":
                assert isinstance(arguments["on"], bool)
            case "door":
                assert arguments["where"] in ("in", "out")
            case name:
                pytest.fail(f"there is no {name}")
    assert this_call["message"]["tool_calls"][0]["function"]["name"] == "door"


async def test_a_stream_has_the_same_call_and_each_choice_its_own(autojump_clock: object) -> None:
    wanted = {"tools": [DOOR], "tool_choice": "required", "max_tokens": 120, "n": 2}
    async with door(description=TOOLED) as here:
        whole = (await here.chat(**wanted)).json["choices"]
        events = (await here.chat(**wanted, stream=True)).events
    ids = set()
    for index in (0, 1):
        parts = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        (call,) = [call for part in parts for call in part["delta"].get("tool_calls", ())]
        assert call["index"] == 0
        assert call["function"] == whole[index]["message"]["tool_calls"][0]["function"]
        assert parts[-1]["finish_reason"] == "tool_calls"
        assert "".join(part["delta"].get("content", "") for part in parts) == ""
        ids.add(call["id"])
    assert len(ids) == 2


async def test_a_call_that_is_cut_off_is_the_text_that_it_was(autojump_clock: object) -> None:
    async with door(description=TOOLED) as here:
        choice = (await here.chat(tools=[DOOR], tool_choice="required", max_tokens=8)).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("{")
    assert "tool_calls" not in choice["message"]


async def test_who_may_call_and_does_not_says_the_same_as_without_tools_in_mind(autojump_clock: object) -> None:
    async with door(description=TOOLED) as here:
        plain = (await here.chat(max_tokens=8)).json
        none = (await here.chat(max_tokens=8, tools=[LIGHT], tool_choice="none")).json
        auto = (await here.chat(max_tokens=8, tools=[LIGHT])).json
    assert none["choices"][0]["message"] == plain["choices"][0]["message"]
    assert none["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert auto["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"], "the model is told of them"
    assert "tool_calls" not in auto["choices"][0]["message"]


def test_calls_of_an_answer_are_numbered_and_make_its_finish_reason() -> None:
    calls = CallsOfChoice("chatcmpl-7", 1, ToolPlan(told=[DOOR]).reader())
    answer = Answer(1, finish_reason="stop")
    assert calls.take(f"Well <tool_call>{MADE}", last=False) == ("Well", [])
    assert calls.finish_reason(answer) == "stop"
    text, made = calls.take(f"</tool_call><tool_call>{MADE}</tool_call>", last=True)
    assert (text, [call.id for call in made]) == ("", ["call_7_1_0", "call_7_1_1"])
    assert calls.finish_reason(answer) == "tool_calls"


async def test_a_schema_that_is_nested_too_deeply_is_refused(autojump_clock: object) -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": [deep]}
    async with door(0, description=TOOLED) as here:
        for choice in ("required", "auto"):
            reply = await here.chat(tools=[tool("f", {"x": deep})], tool_choice=choice)
            assert reply.status == 400, reply.json


def test_earlier_calls_and_what_came_of_them_are_told_as_the_template_has_it() -> None:
    tokenizer = Tokenizer(described(TEMPLATE).tokenizer)
    call = {"function": {"name": "door", "arguments": {"where": "<|im_end|> é"}}}
    ids = tokenizer.chat(
        [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "open"}], [DOOR]
    )
    text = tokenizer.decode(ids)
    assert '"arguments": {"where": "<|im_end|> é"}' in text, "as text: control tokens are not decoded"
    assert json.loads(text.split("functions:\n")[1].split("\n")[0]) == DOOR
    assert "tool\nopen" in text


CALLED = {"id": "c", "type": "function", "function": {"name": "door", "arguments": '{"where": "in"}'}}


async def test_a_result_is_answered(autojump_clock: object) -> None:
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    async with door(description=TOOLED) as here:
        reply = await here.chat(messages=messages, max_tokens=4)
        damaged = {**CALLED, "function": {"name": "door", "arguments": "[]"}}
        wrong = await here.chat(messages=[*HELLO, {"role": "assistant", "tool_calls": [damaged]}])
        empty = await here.chat(messages=[*HELLO, {"role": "assistant"}])
        untold = await here.chat(messages=[{"role": "tool", "content": "x"}])
    assert reply.status == 200
    assert reply.json["choices"][0]["message"]["content"]
    assert wrong.error["param"] == "messages[1].tool_calls[0].function.arguments"
    assert empty.error["param"] == "messages[1].content"
    assert untold.error["param"] == "messages[0].tool_call_id"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [LIGHT, tool("f", of(a={"type": "nothing"}))], "tool_choice": "required"}, "[1].function.parameters"),
    ({"tools": [LIGHT, tool("f", of(a={"const": "x" * 16_384}))]}, "[1].function.parameters"),
    ({"tools": [tool("f", {"type": "string"})]}, "[0].function.parameters"),
    ({"tools": [LIGHT, LIGHT]}, "[1].function.name"),
    ({"tools": [tool("a b")]}, "[0].function.name"),
    ({"tools": [tool(f"f{n}", of(a={"const": "x" * 9000})) for n in range(2)], "tool_choice": "required"}, ""),
]


@pytest.mark.parametrize(("fields", "at"), BAD, ids=["schema", "long", "no object", "twice", "name", "together"])
async def test_a_tool_that_is_wrong_is_named(fields: dict[str, Any], at: str, autojump_clock: object) -> None:
    async with door(0, description=TOOLED) as here:
        reply = await here.chat(**fields)
    assert (reply.status, reply.error["param"]) == (400, f"tools{at}")


async def test_a_choice_that_makes_no_sense_is_refused(autojump_clock: object) -> None:
    other = {"type": "function", "function": {"name": "window"}}
    async with door(0, description=TOOLED) as here:
        without = await here.chat(tool_choice="required")
        unknown = await here.chat(tools=[LIGHT], tool_choice=other)
        both = await here.chat(tools=[LIGHT], response_format={"type": "json_object"})
    assert [reply.error["param"] for reply in (without, unknown, both)] == [
        "tool_choice",
        "tool_choice",
        "response_format",
    ]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0].content }}", "this model's chat template has no tools"),
        (BRIEF.replace(OPEN, "[CALL]"), "has another"),
    ],
)
async def test_a_template_without_tools_or_of_another_style_is_refused_by_name(
    template: str, why: str, autojump_clock: object
) -> None:
    async with door(0, description=described(template)) as here:
        reply = await here.chat(tools=[LIGHT])
        told = await here.chat(messages=[{"role": "tool", "tool_call_id": "c", "content": "x"}])
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, "tools", "unsupported_parameter")
    assert why in reply.error["message"]
    assert (told.status, told.error["param"]) == (400, "messages[0].role")
