"""The messages of stages, as frozen structs; docs/protocols/ is the same in prose.

On the wire each is a MessagePack map whose key `type` names the message. Unknown keys are ignored, so that a
newer peer may add some. Limits are declared with the fields: what decodes is within them. `adverts` and
`transfer_messages` have those of the other protocols.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pgrid.ids import Span
from p2pgrid.wire.fields import (
    Addresses,
    Count,
    Hex32,
    Hex64,
    Message,
    Peer,
    Seconds,
    Text,
)

STAGE_PROTOCOL = "/p2pgrid/stage/1"
TOKENS_PER_STEP_MAX = 512
ROUTE_HOPS_MAX = 256
PREFIX_BLOCK = 64
"""Positions of a prompt that share one key in the prefix caches; see `core.prefix`."""
PREFIX_KEY_BYTES, PREFIX_BLOCKS_MAX = 16, 4096
LOGPROBS_MAX = 20
"""Alternatives to a token whose log-probabilities are told."""
SCHEMA_CHARS_MAX = 16_384
"""Of a JSON schema; what it costs to compile is limited by more than its length, see `engine.json_schema`."""
BIASES_MAX = 300
"""Tokens whose logits a client may shift."""

WireFormat = Literal["fp32", "fp16", "int8"]
WireChoice = Literal["fp32", "fp16", "int8", "auto"]
"""How hidden states travel (see `wire.hidden`), and what a client may ask for."""


class Contact(msgspec.Struct, frozen=True):
    """A peer and where it can be dialled (multiaddrs, with or without `/p2p/…`)."""

    peer: Peer
    addresses: Addresses = ()


# ── /p2pgrid/stage/1: the link itself ────────────────────────────────────────────────────────────────────


class Hello(Message, frozen=True):
    """First frame of each side; the dialler's comes first."""

    agent: Text
    window_bytes: Count
    """What the sender of this message lets the other have in flight."""


class Ping(Message, frozen=True):
    """Heartbeat. Answered at once with the same nonce."""

    nonce: Count


class Pong(Message, frozen=True):
    nonce: Count


class Credit(Message, frozen=True):
    """So many bytes of frames were consumed and may be sent again."""

    nbytes: Count


class Goodbye(Message, frozen=True):
    """The last frame of a link that ends on purpose."""

    reason: Text


# ── /p2pgrid/stage/1: sessions ───────────────────────────────────────────────────────────────────────────


Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is drawn; see `core.sampling`. Temperature 0 is greedy."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    """Draw among the k likeliest tokens; 0 = all."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    presence_penalty: Penalty = 0.0
    """Taken from the logit of every token that the answer has already."""
    frequency_penalty: Penalty = 0.0
    """Taken from it once more for each time that the answer has the token."""
    logit_bias: Annotated[tuple[tuple[Count, Bias], ...], Meta(max_length=BIASES_MAX)] = ()
    """Token ids, and what is added to their logits. Of several entries for one token the last counts."""


class Hop(msgspec.Struct, frozen=True):
    """One stage of a route."""

    peer: Peer
    span: Span
    addresses: Addresses = ()


class Open(Message, frozen=True):
    """Client to each stage: hold a KV row for this session; `hop` is the receiver's place in `route`."""

    session: Hex32
    epoch: Count
    model: Hex64
    route: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=ROUTE_HOPS_MAX)]
    hop: Count
    sampling: Sampling = Sampling()
    stop_tokens: Annotated[tuple[Count, ...], Meta(max_length=64)] = ()
    """The last stage feeds none of these back to stage 0."""
    relayed: bool = False
    """Results go to the client, who passes them on: for stages that cannot reach each other."""
    positions: Count = 0
    """How many positions the session may come to hold, for which room is kept; 0 = the whole context."""
    prefix: Annotated[bytes, Meta(max_length=PREFIX_KEY_BYTES * PREFIX_BLOCKS_MAX)] = b""
    """Keys of the prompt's whole blocks, one after another: what a stage still holds of them need not be computed."""
    cache_scope: Annotated[str, Meta(max_length=128)] = ""
    """Prompts are shared between sessions of one client with one scope, and with nobody else."""
    wire: WireChoice = "fp32"
    """How the stages send each other hidden states; `auto` = by what each link carries."""
    exact: bool = False
    """No stage drafts tokens ahead."""
    logprobs: Annotated[int, Meta(ge=0, le=LOGPROBS_MAX)] | None = None
    """Tell log-probabilities with each token, and those of so many of the likeliest ones; with scores, these alone."""
    prompt_length: Count = 0
    """Positions before the answer: what stands behind them is what penalties count, and what a schema is about."""
    json_schema: Annotated[str, Meta(max_length=SCHEMA_CHARS_MAX)] = ""
    """The answer is JSON that fits it. Only the last stage is told."""


class Opened(Message, frozen=True):
    """Stage to client: the row is held and the link to the next stage stands."""

    session: Hex32
    epoch: Count
    hop: Count
    cached: Count = 0
    """Positions that the row holds already: a kept prefix of the prompt, or what earlier epochs computed."""
    replays_from: Count = 0
    """What it sent of positions `[replays_from, cached)` it can send again."""


class Step(Message, frozen=True):
    """Set the session's length to `position`, then append `tokens`.

    To stage 0 `hidden` is empty; to any other stage it is `[len(tokens), hidden]`, packed as `form` says.
    """

    session: Hex32
    epoch: Count
    position: Count
    tokens: Annotated[bytes, Meta(min_length=4, max_length=4 * TOKENS_PER_STEP_MAX)]
    """int32, little-endian, `[n]`."""
    hidden: bytes = b""
    want: Literal["nothing", "token", "scores"] = "nothing"
    """What the last stage answers: no word, the sampled next token, or a score for each position."""
    targets: Annotated[bytes, Meta(max_length=4 * TOKENS_PER_STEP_MAX)] = b""
    """With `want="scores"`: the token that follows each position, int32, little-endian, `[n]`."""
    until: Count = 0
    """The last stage may itself feed sampled tokens for positions below this one to stage 0."""
    form: WireFormat = "fp32"
    draft: bool = False
    """Stage 0 guessed the token: the last stage passes the step over unless it drew the same one."""
    through: Count = ROUTE_HOPS_MAX
    """The last hop that runs the step: a replayed one goes no further than the stages that lack it."""


class Token(Message, frozen=True):
    """Last stage to client: the token sampled for `position`."""

    session: Hex32
    epoch: Count
    position: Count
    token: Count
    logprob: float | None = None
    """Where `Open.logprobs` asks for it: by the softmax of the logits as the model gives them."""
    top_ids: Annotated[bytes, Meta(max_length=4 * LOGPROBS_MAX)] = b""
    """int32, little-endian, `[k]`: the likeliest tokens, the likeliest one first."""
    top_logprobs: Annotated[bytes, Meta(max_length=4 * LOGPROBS_MAX)] = b""
    """float32, little-endian, `[k]`."""


class Scores(Message, frozen=True):
    """Last stage to client, for positions `[position, position + n)` of a teacher-forced text."""

    session: Hex32
    epoch: Count
    position: Count
    top1: Annotated[bytes, Meta(max_length=4 * TOKENS_PER_STEP_MAX)]
    """int32, little-endian, `[n]`: the likeliest token after each position."""
    next_logprobs: Annotated[bytes, Meta(max_length=4 * TOKENS_PER_STEP_MAX)]
    """float32, little-endian, `[n]`: log-probability of the step's `targets`."""
    top_ids: Annotated[bytes, Meta(max_length=4 * TOKENS_PER_STEP_MAX * LOGPROBS_MAX)] = b""
    """int32, little-endian, `[n, k]`: the `k = Open.logprobs` likeliest tokens after each position, in order."""
    top_logprobs: Annotated[bytes, Meta(max_length=4 * TOKENS_PER_STEP_MAX * LOGPROBS_MAX)] = b""
    """float32, little-endian, `[n, k]`."""


class OutOfSync(Message, frozen=True):
    """Stage to client: the step lacked what comes before it; the session's length here is `length`."""

    session: Hex32
    epoch: Count
    hop: Count
    length: Count


class Busy(Message, frozen=True):
    """Stage to client: no room for this session now."""

    session: Hex32
    epoch: Count
    hop: Count
    retry_after_s: Seconds


class Failed(Message, frozen=True):
    """Stage to client: this session ended here, and why."""

    session: Hex32
    epoch: Count
    hop: Count
    reason: Text


class Lost(Message, frozen=True):
    """Stage to client: the link to `peer`, the next stage, is gone; the row waits for a new epoch."""

    session: Hex32
    epoch: Count
    hop: Count
    peer: Peer
    reason: Text


class Moved(Message, frozen=True):
    """Stage to client: this node leaves, and `to` holds the row now, for a new epoch in which it takes this hop."""

    session: Hex32
    epoch: Count
    hop: Count
    to: Hop


class Replay(Message, frozen=True):
    """Client to each stage of a new epoch: first send again what was sent of positions `[start, stop)`, then go on."""

    session: Hex32
    epoch: Count
    start: Count = 0
    stop: Count = 0
    """Not above `start`: nothing is sent again."""
    through: Count = ROUTE_HOPS_MAX
    """As in the steps that are sent again."""


class Close(Message, frozen=True):
    """Client to each stage: forget this session. Answered with silence."""

    session: Hex32


LinkControl = Hello | Ping | Pong | Credit | Goodbye
ToStage = Open | Step | Replay | Close
ToClient = Opened | Token | Scores | OutOfSync | Busy | Failed | Lost | Moved
SessionMessage = ToStage | ToClient
LinkMessage = LinkControl | SessionMessage
