"""Functions that a model may call: what of them it is told, and what its answer is held to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.errors import BadSchema
from p2pgrid.gateway.faults import ApiError, unsupported
from p2pgrid.gateway.schema import ChatRequest, NamedTool, Tool
from p2pgrid.gateway.tool_calls import CLOSE, OPEN, CallReader
from p2pgrid.node.request import Asker, Request, TokenIds
from p2pgrid.wire.messages import SCHEMA_CHARS_MAX

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolPlan:
    """What the tools of one request come to."""

    told: Sequence[dict[str, Any]] = ()
    """For the chat template."""
    schema: str = ""
    """A call must come, which fits this JSON schema; empty = the model may call or not."""
    one_call: bool = False
    """The answer ends with its first call."""

    @property
    def beginning(self) -> str:
        """What the answer is made to begin with, as a part of the prompt."""
        return f"{OPEN}\n" if self.schema else ""

    @property
    def stop(self) -> tuple[str, ...]:
        return (CLOSE,) if self.one_call and not self.schema else ()

    def reader(self) -> CallReader | None:
        """Of one answer's calls; None when none are to be read."""
        return CallReader(called=bool(self.schema)) if self.told else None


async def plan_tools(body: ChatRequest, asker: Asker) -> ToolPlan:
    """Raises ApiError, naming the tool that is wrong."""
    tools = body.tools or []
    if _must_call(body) and not tools:
        raise ApiError(400, "there are no tools to be called", param="tool_choice", code="invalid_value")
    if not tools or body.tool_choice == "none":
        return ToolPlan()
    check_template(asker.tokenizer, "tools")
    if body.response_format is not None:
        raise unsupported("response_format", "an answer is held to a format, or may call tools")
    try:
        return await _planned(tools, body, asker)
    except RecursionError:
        raise _bad_schema("the schemas are nested too deeply", "tools") from None


async def _planned(tools: Sequence[Tool], body: ChatRequest, asker: Asker) -> ToolPlan:
    choice = body.tool_choice
    _check_functions(tools)
    only = choice.function.name if isinstance(choice, NamedTool) else None
    wanted = [tool for tool in tools if only in (None, tool.function.name)]
    if not wanted:
        raise ApiError(400, f"no tool has the name {only!r}", param="tool_choice", code="invalid_value")
    schema = await _checked_schema(wanted, tools, asker) if _must_call(body) else ""
    return ToolPlan([_told(tool) for tool in tools], schema, body.parallel_tool_calls is False)


def _must_call(body: ChatRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def check_template(tokenizer: Tokenizer, param: str) -> None:
    """Raises ApiError for a model that cannot be told of tools, or whose calls would not be understood."""
    if not tokenizer.template_has_tools:
        raise unsupported(param, "this model's chat template has no tools")
    if not tokenizer.template_shows(OPEN):
        raise unsupported(param, f"calls are read in the style of {OPEN}, and this model's chat template has another")


def _check_functions(tools: Sequence[Tool]) -> None:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        at, name = f"tools[{index}].function", tool.function.name
        if name in names:
            raise ApiError(400, f"two tools have the name {name!r}", param=f"{at}.name", code="invalid_value")
        names.add(name)
        parameters = _parameters(tool)
        _check_length(parameters, f"{at}.parameters")
        if parameters["type"] != "object":
            raise _bad_schema("the arguments of a function are an object", f"{at}.parameters")


def _told(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.function.name, "description": tool.function.description, "parameters": _parameters(tool)}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _check_length(schema: Any, param: str) -> None:
    if (length := len(msgspec.json.encode(schema).decode())) > SCHEMA_CHARS_MAX:
        raise _bad_schema(f"the schema has {length} characters: {SCHEMA_CHARS_MAX} at most", param)


async def _checked_schema(wanted: Sequence[Tool], tools: Sequence[Tool], asker: Asker) -> str:
    """Of a call of one of the `wanted` tools. The stages hold the answer to it as to any other JSON schema."""
    schema = _call_schema(wanted)
    _check_length(schema, "tools")
    try:
        return await _compiled(schema, asker)
    except BadSchema as error:
        why = str(error)
    for tool in wanted:
        try:
            await _compiled(_call_schema([tool]), asker)
        except BadSchema as error:
            raise _bad_schema(str(error), f"tools[{tools.index(tool)}].function.parameters") from error
    raise _bad_schema(f"all tools together: {why}", "tools")


async def _compiled(schema: dict[str, Any], asker: Asker) -> str:
    text = msgspec.json.encode(schema).decode()
    await asker.grammar_of(Request(TokenIds(()), json_schema=text))
    return text


def _call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    return {"anyOf": [_one_call(tool, f"#/anyOf/{index}/properties/arguments") for index, tool in enumerate(tools)]}


def _one_call(tool: Tool, at: str) -> dict[str, Any]:
    """`at` is where the parameters will stand, to which their own references lead then."""
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": _moved(_parameters(tool), at)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    given = tool.function.parameters
    return NO_ARGUMENTS if given is None else {"type": "object", **given}


def _moved(schema: Any, at: str) -> Any:
    match schema:
        case {"$ref": str(ref)} if ref.startswith("#"):
            others = {key: _moved(value, at) for key, value in schema.items() if key != "$ref"}
            return {"$ref": at + ref[1:], **others}
        case dict():
            return {key: _moved(value, at) for key, value in schema.items()}
        case list():
            return [_moved(each, at) for each in schema]
        case _:
            return schema


def _bad_schema(why: str, param: str) -> ApiError:
    return ApiError(400, why, param=param, code="invalid_value")
