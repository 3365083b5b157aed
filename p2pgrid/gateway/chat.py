"""`POST /v1/chat/completions`."""

from collections.abc import Iterable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.routing import Route

from p2pgrid.gateway.access import Caller
from p2pgrid.gateway.answering import Asked, Done, Ended, Event, Opened, Said, how_it_came
from p2pgrid.gateway.bodies import read_json
from p2pgrid.gateway.documents import (
    AnswerMessage,
    Chat,
    ChatChoice,
    ChatChunk,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    Usage,
)
from p2pgrid.gateway.faults import ApiError, unsupported
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.logprobs import chat_logprobs
from p2pgrid.gateway.replies import StreamedReply, WholeReply
from p2pgrid.gateway.sampling import check_stream_options, choices_of, sampling_of, stops_of
from p2pgrid.gateway.schema import ChatMessage, ChatRequest, Content, DeveloperMessage, JsonFormat, SchemaFormat
from p2pgrid.gateway.usage import StreamedUsage, usage_of
from p2pgrid.node.answer import TokenInfo
from p2pgrid.node.request import Chat as Conversation
from p2pgrid.node.request import ChatMessage as Turn
from p2pgrid.node.request import Request, TokenIds
from p2pgrid.wire.messages import SCHEMA_CHARS_MAX

ANY_OBJECT = '{"type":"object"}'


def routes(gateway: Gateway) -> list[Route]:
    async def chat(request: HttpRequest) -> WholeReply | StreamedReply:
        caller = gateway.access.admit(request, "chat")
        body = await read_json(request, ChatRequest, gateway.limits)
        asked = await _asked(gateway, body, caller)
        reply = StreamedReply if body.stream else WholeReply
        return reply(gateway, asked, ChatShape(StreamedUsage(body.stream_options), bool(body.logprobs)))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


async def _asked(gateway: Gateway, body: ChatRequest, caller: Caller) -> Asked:
    """Raises ApiError or BadInput for all that can be known before anybody is asked."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    check_stream_options(body)
    if body.tools and body.tool_choice != "none":
        raise unsupported("tools", "the models here answer with text, and call nothing")
    model, name = gateway.models.find(body.model)
    asker = await gateway.models.asker(model)
    limits = gateway.limits
    prompt = tuple(asker.prompt_ids(Request(conversation_of(body.messages))))
    choices, schema = choices_of(body, 1, limits), schema_of(body)
    requests = [
        Request(
            TokenIds(prompt),
            max_tokens=body.max_completion_tokens or body.max_tokens or limits.answer_tokens_default,
            sampling=sampling_of(body, choice, asker.tokenizer.stops),
            stop=stops_of(body),
            cache_scope=caller.id,
            json_schema=schema,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        for choice in range(choices)
    ]
    asker.check(requests[0])
    await asker.grammar_of(requests[0])
    return Asked(
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


def conversation_of(messages: Sequence[ChatMessage]) -> Conversation:
    """As chat templates take it: every content one text, the developer's word the system's."""
    return Conversation(tuple(Turn(_role(message), text_of(message.content)) for message in messages))


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _role(message: ChatMessage) -> str:
    return "system" if isinstance(message, DeveloperMessage) else str(message.__struct_config__.tag)


class ChatShape:
    """See `replies.Shape`."""

    def __init__(self, usage: StreamedUsage, logprobs: bool) -> None:
        self._usage = usage
        self._logprobs = logprobs

    def whole(self, asked: Asked, done: Sequence[Done]) -> msgspec.Struct:
        choices = []
        for index, each in enumerate(done):
            answer, logprobs = each.answer, self._logprobs_of(asked, each.tokens)
            message = AnswerMessage(answer.text)
            choices.append(ChatChoice(index, message, answer.finish_reason, how_it_came(answer), logprobs))
        return Chat(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage_of(asked, done))

    def chunks(self, asked: Asked, events: Sequence[Event]) -> Iterable[msgspec.Struct]:
        for index in sorted({event.index for event in events}):
            own = [event for event in events if event.index == index]
            usage = self._usage.after(asked, index, own)
            text = "".join(event.piece.text for event in own if isinstance(event, Said))
            tokens = [event.piece.token for event in own if isinstance(event, Said) and event.piece.token is not None]
            logprobs = self._logprobs_of(asked, tokens) if tokens else None
            if isinstance(own[0], Opened):
                yield self._chunk(asked, [ChunkChoice(index, Delta("assistant", text), logprobs=logprobs)], usage)
            elif text or logprobs is not None:
                yield self._chunk(asked, [ChunkChoice(index, Delta(content=text), logprobs=logprobs)], usage)
            if isinstance(own[-1], Ended):
                answer = own[-1].done.answer
                how = how_it_came(answer)
                yield self._chunk(asked, [ChunkChoice(index, Delta(), answer.finish_reason, p2pgrid=how)], usage)

    def last_chunks(self, asked: Asked, done: Sequence[Done]) -> Iterable[msgspec.Struct]:
        if (usage := self._usage.last(asked, done)) is not None:
            yield self._chunk(asked, [], usage)

    def _logprobs_of(self, asked: Asked, tokens: Sequence[TokenInfo]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, asked.asker.tokenizer) if self._logprobs else None

    def _chunk(self, asked: Asked, choices: list[ChunkChoice], usage: Usage | msgspec.UnsetType | None) -> ChatChunk:
        return ChatChunk(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage)
