"""The documents that are answered with, as OpenAI's clients read them."""

from typing import Literal

import msgspec


class Recovered(msgspec.Struct, frozen=True):
    """One time that an answer went on elsewhere."""

    after_tokens: int
    lost: list[str]
    """Peer ids."""
    took_s: float


class RouteHop(msgspec.Struct, frozen=True):
    peer_id: str
    layers: tuple[int, int]
    """`[start, stop)`."""


class HowItCame(msgspec.Struct, frozen=True):
    """How an answer came about. Not one of OpenAI's fields."""

    route: list[RouteHop]
    """At the end."""
    recoveries: list[Recovered]
    ttft_s: float
    """From the open session to the first token."""
    tokens_per_s: float
    """Of the tokens after the first."""
    cached_tokens: int
    """Of the prompt, not computed again."""


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that was as likely as it says."""

    token: str
    """Its text; where that is no whole characters `bytes:` and then each as `\\xNN`."""
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of an answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """Of the tokens of a completion, and with `echo` of its prompt; of its first token nothing is known."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the text."""


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | msgspec.UnsetType = msgspec.UNSET
    """At the end."""


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str
    """A JSON object."""


class Call(msgspec.Struct, frozen=True):
    """A function that the model wants called."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class StreamedCall(msgspec.Struct, frozen=True):
    """The same in a stream: whole, and once."""

    index: int
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[Call] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    finish_reason: str
    p2pgrid: HowItCame
    logprobs: ChatLogprobs | None = None


class Chat(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[StreamedCall] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    p2pgrid: HowItCame | msgspec.UnsetType = msgspec.UNSET
    """In the chunk that has the finish reason."""


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class TextChoice(msgspec.Struct, frozen=True):
    """An answer, or in a stream more of one."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: TextLogprobs | None = None
    p2pgrid: HowItCame | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True):
    """The answer of `POST /v1/completions`, and each event of a streamed one."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct, frozen=True):
    id: str
    created: int
    """When this gateway first saw it, Unix time."""
    model_id: str
    """The hash that names it wherever it is; not one of OpenAI's fields, like the next ones."""
    layers: int
    health: Literal["ready", "degraded", "unavailable"]
    reasons: list[str]
    object: Literal["model"] = "model"
    owned_by: Literal["p2pgrid"] = "p2pgrid"


class ModelList(msgspec.Struct, frozen=True):
    """The answer of `GET /v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"
