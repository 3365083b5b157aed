"""`POST /v1/chat/completions`."""

from collections.abc import Iterable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.routing import Route

from p2pgrid.gateway.access import Caller
from p2pgrid.gateway.answering import Asked, Done, Ended, Event, Opened, Said, how_it_came
from p2pgrid.gateway.bodies import read_json
from p2pgrid.gateway.calls import CallsOfChoice
from p2pgrid.gateway.conversation import conversation_of
from p2pgrid.gateway.documents import (
    AnswerMessage,
    Call,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    Usage,
)
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.logprobs import chat_logprobs
from p2pgrid.gateway.replies import StreamedReply, WholeReply
from p2pgrid.gateway.sampling import check_stream_options, choices_of, sampling_of, stops_of
from p2pgrid.gateway.schema import ChatRequest, JsonFormat, SchemaFormat
from p2pgrid.gateway.tools import ToolPlan, plan_tools
from p2pgrid.gateway.usage import StreamedUsage, usage_of
from p2pgrid.node.answer import TokenInfo
from p2pgrid.node.request import Request, TokenIds
from p2pgrid.wire.messages import SCHEMA_CHARS_MAX

ANY_OBJECT = '{"type":"object"}'


def routes(gateway: Gateway) -> list[Route]:
    async def chat(request: HttpRequest) -> WholeReply | StreamedReply:
        caller = gateway.access.admit(request, "chat")
        body = await read_json(request, ChatRequest, gateway.limits)
        asked, tools = await _asked(gateway, body, caller)
        reply = StreamedReply if body.stream else WholeReply
        return reply(gateway, asked, ChatShape(StreamedUsage(body.stream_options), bool(body.logprobs), tools))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


async def _asked(gateway: Gateway, body: ChatRequest, caller: Caller) -> tuple[Asked, ToolPlan]:
    """What is asked, and how tools come into it.

    Raises ApiError or BadInput for all that can be known before anybody is asked.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    check_stream_options(body)
    model, name = gateway.models.find(body.model)
    asker = await gateway.models.asker(model)
    limits = gateway.limits
    messages = conversation_of(body.messages, asker.tokenizer)
    tools = await plan_tools(body, asker)
    beginning = asker.tokenizer.encode(tools.beginning, special=True)
    prompt = (*asker.tokenizer.chat(messages, tools.told), *beginning)
    choices, schema = choices_of(body, 1, limits), tools.schema or schema_of(body)
    requests = [
        Request(
            TokenIds(prompt),
            max_tokens=body.max_completion_tokens or body.max_tokens or limits.answer_tokens_default,
            sampling=sampling_of(body, choice, asker.tokenizer.stops),
            stop=(*stops_of(body), *tools.stop),
            cache_scope=caller.id,
            json_schema=schema,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        for choice in range(choices)
    ]
    asker.check(requests[0])
    await asker.grammar_of(requests[0])
    asked = Asked(
        id=f"chatcmpl-{gateway.new_id()}",
        model=model,
        name=name,
        asker=asker,
        requests=requests,
        prompt_tokens=[len(prompt)] * choices,
        caller=caller,
        created=int(gateway.now_s()),
        per_prompt=choices,
    )
    return asked, tools


def schema_of(body: ChatRequest) -> str:
    """The JSON schema that answers are held to; empty = none. Raises ApiError."""
    match body.response_format:
        case JsonFormat():
            return ANY_OBJECT
        case SchemaFormat(json_schema=named):
            schema = msgspec.json.encode(named.schema).decode()
            if len(schema) > SCHEMA_CHARS_MAX:
                message = f"the schema has {len(schema)} characters: {SCHEMA_CHARS_MAX} at most"
                raise ApiError(400, message, param="response_format", code="invalid_value")
            return schema
        case _:
            return ""


class ChatShape:
    """See `replies.Shape`."""

    def __init__(self, usage: StreamedUsage, logprobs: bool, tools: ToolPlan) -> None:
        self._usage = usage
        self._logprobs = logprobs
        self._tools = tools
        self._calls: dict[int, CallsOfChoice] = {}

    def whole(self, asked: Asked, done: Sequence[Done]) -> msgspec.Struct:
        choices = []
        for index, each in enumerate(done):
            answer, logprobs = each.answer, self._logprobs_of(asked, each.tokens)
            calls = CallsOfChoice(asked.id, index, self._tools.reader())
            text, made = calls.take(answer.text, last=True)
            found = [Call(call.id, call.function) for call in made]
            message = AnswerMessage(text if text or not found else None, tool_calls=found or msgspec.UNSET)
            reason = calls.finish_reason(answer)
            choices.append(ChatChoice(index, message, reason, how_it_came(answer), logprobs))
        return Chat(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage_of(asked, done))

    def chunks(self, asked: Asked, events: Sequence[Event]) -> Iterable[msgspec.Struct]:
        for index in sorted({event.index for event in events}):
            own = [event for event in events if event.index == index]
            usage = self._usage.after(asked, index, own)
            calls = self._calls.setdefault(index, CallsOfChoice(asked.id, index, self._tools.reader()))
            said = "".join(event.piece.text for event in own if isinstance(event, Said))
            text, made = calls.take(said, last=isinstance(own[-1], Ended))
            tokens = [event.piece.token for event in own if isinstance(event, Said) and event.piece.token is not None]
            logprobs = self._logprobs_of(asked, tokens) if tokens else None
            role = "assistant" if isinstance(own[0], Opened) else None
            if role or text or made or logprobs is not None:
                delta = Delta(role, None if made and not text else text, made or None)
                yield self._chunk(asked, [ChunkChoice(index, delta, logprobs=logprobs)], usage)
            if isinstance(own[-1], Ended):
                answer = own[-1].done.answer
                reason, how = calls.finish_reason(answer), how_it_came(answer)
                yield self._chunk(asked, [ChunkChoice(index, Delta(), reason, p2pgrid=how)], usage)

    def last_chunks(self, asked: Asked, done: Sequence[Done]) -> Iterable[msgspec.Struct]:
        if (usage := self._usage.last(asked, done)) is not None:
            yield self._chunk(asked, [], usage)

    def _logprobs_of(self, asked: Asked, tokens: Sequence[TokenInfo]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, asked.asker.tokenizer) if self._logprobs else None

    def _chunk(self, asked: Asked, choices: list[ChunkChoice], usage: Usage | msgspec.UnsetType | None) -> ChatChunk:
        return ChatChunk(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage)
