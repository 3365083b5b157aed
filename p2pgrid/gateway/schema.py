"""The bodies of requests, as OpenAI's clients write them.

Whatever a request may not have is refused by msgspec when it is decoded; what it may have and this gateway does not
do is refused by name where it would be done. `/openapi.json` is made of these structs, and of those in `documents`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MESSAGES_MAX = 1024
PARTS_MAX = 64
STOPS_MAX = 4
TOOLS_MAX = 128
CALLS_MAX = 128
TOP_LOGPROBS_MAX = 20
COMPLETION_LOGPROBS_MAX = 5
PROMPT_ITEMS_MAX = 65_536
"""Prompts, or tokens of one: more than any context, and the body's size is limited besides."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what comes in: a field that is not declared is an error that names it."""


class TextPart(Body, frozen=True, tag_field="type", tag="text"):
    """A part of a message. Images, audio and files are not understood by the models here."""

    text: str


Content = str | Annotated[list[TextPart], Meta(min_length=1, max_length=PARTS_MAX)]


class InstructionMessage(Body, frozen=True, tag_field="role", tag="system"):
    content: Content


class DeveloperMessage(Body, frozen=True, tag_field="role", tag="developer"):
    """The newer word for `system`."""

    content: Content


class UserMessage(Body, frozen=True, tag_field="role", tag="user"):
    content: Content


class CalledFunction(Body, frozen=True):
    name: FunctionName
    arguments: str
    """A JSON object."""


class EarlierCall(Body, frozen=True, tag_field="type", tag="function"):
    id: CallId
    function: CalledFunction


class AssistantMessage(Body, frozen=True, tag_field="role", tag="assistant"):
    """An earlier answer, also as a client got it from here: with its empty fields."""

    content: Content | None = None
    """May be missing where functions were called."""
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: None = None
    tool_calls: Annotated[list[EarlierCall], Meta(max_length=CALLS_MAX)] | None = None


class ToolMessage(Body, frozen=True, tag_field="role", tag="tool"):
    """What a function gave that an answer had called."""

    content: Content
    tool_call_id: CallId


ChatMessage = InstructionMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class StreamOptions(Body, frozen=True):
    include_usage: bool | None = None
    """A last chunk without choices says how many tokens it were."""
    continuous_usage_stats: bool | None = None
    """Each chunk of a choice says how many tokens it has until then. Not one of OpenAI's."""
    include_obfuscation: Literal[False] | None = None


class CommonRequest(Body, frozen=True, kw_only=True):
    """What chats and completions have in common."""

    model: Name
    """The name or id of a model that the swarm serves."""
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Draw among the k likeliest tokens; 0 = all. Not one of OpenAI's."""
    ignore_eos: bool | None = None
    """The model does not end its answer: `max_tokens` or `stop` does. Not one of OpenAI's."""
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=STOPS_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    user: str | None = None
    """Taken and not used, like the next ones."""
    metadata: dict[str, str] | None = None


class Function(Body, frozen=True, kw_only=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object; none = no arguments."""
    strict: bool | None = None
    """Arguments fit the schema where a call is required, and nowhere else."""


class Tool(Body, frozen=True, tag_field="type", tag="function"):
    function: Function


class FunctionChoice(Body, frozen=True):
    name: FunctionName


class NamedTool(Body, frozen=True, tag_field="type", tag="function"):
    """This function is to be called."""

    function: FunctionChoice


class TextFormat(Body, frozen=True, tag_field="type", tag="text"):
    """As the model likes; what is meant without any format."""


class JsonFormat(Body, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Body, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    """The answer fits the schema in any case."""


class SchemaFormat(Body, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that fits a schema."""

    json_schema: NamedSchema


class ChatRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Tokens | None = None
    """The newer word for `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    """Where the model's chat template has tools, and shows calls in the style that is read here."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    """False = the answer ends behind its first call. One that is required comes alone in any case."""
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Prompt = str | TokenId | Annotated[list[TokenId], Meta(min_length=1, max_length=PROMPT_ITEMS_MAX)]


class CompletionRequest(CommonRequest, frozen=True, kw_only=True):
    """The body of `POST /v1/completions`: a text that goes to the model as it stands, to be continued."""

    prompt: str | Annotated[list[Prompt], Meta(min_length=1, max_length=PROMPT_ITEMS_MAX)]
    """A text, several texts, the token ids of a text, or several lists of them."""
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0 only with `echo`."""
    best_of: Literal[1] | None = None
    """Answers are not compared with each other."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=COMPLETION_LOGPROBS_MAX)] | None = None
    suffix: Literal[""] | None = None


class EmbeddingRequest(Body, frozen=True, kw_only=True):
    """The body of `POST /v1/embeddings`."""

    model: Name
    input: str | Annotated[list[Prompt], Meta(min_length=1, max_length=PROMPT_ITEMS_MAX)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Tokens | None = None
    user: str | None = None
