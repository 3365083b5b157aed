"""The messages of a request, as chat templates take them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.schema import (
    AssistantMessage,
    ChatMessage,
    Content,
    DeveloperMessage,
    EarlierCall,
    ToolMessage,
)
from p2pgrid.gateway.tools import check_template


def conversation_of(messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every content one text, the developer's word the system's, arguments of calls as objects. Raises ApiError."""
    return [_turn(message, f"messages[{index}]", tokenizer) for index, message in enumerate(messages)]


def _turn(message: ChatMessage, at: str, tokenizer: Tokenizer) -> dict[str, Any]:
    match message:
        case DeveloperMessage(content=content):
            return {"role": "system", "content": text_of(content)}
        case ToolMessage(content=content, tool_call_id=call):
            check_template(tokenizer, f"{at}.role")
            return {"role": "tool", "content": text_of(content), "tool_call_id": call}
        case AssistantMessage(content=content, tool_calls=calls) if calls:
            check_template(tokenizer, f"{at}.tool_calls")
            made = [_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(calls)]
            return {"role": "assistant", "content": text_of(content or ""), "tool_calls": made}
        case AssistantMessage(content=None):
            raise ApiError(400, "an answer has content, or calls", param=f"{at}.content", code="invalid_value")
        case _:
            return {"role": message.__struct_config__.tag, "content": text_of(message.content or "")}


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _call(call: EarlierCall, at: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        param = f"{at}.function.arguments"
        raise ApiError(400, "arguments are a JSON object, as text", param=param, code="invalid_value") from error
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
