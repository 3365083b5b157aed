"""Running a request to its end: the same loop over a pipeline of peers and over one process."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import trio

from p2pgrid.core.generation import Emit, Finish, Generation, SendStep, chunks
from p2pgrid.core.prefix import reusable
from p2pgrid.core.recovery import Recovery
from p2pgrid.core.text import TextStream
from p2pgrid.errors import BadInput, PeerMisbehaved
from p2pgrid.wire.messages import Hop, Scores, Token


class Session(Protocol):
    """Where steps go in and answers come out: `PipelineSession` or `LocalSession`."""

    @property
    def route(self) -> tuple[Hop, ...]: ...

    @property
    def cached(self) -> int:
        """Positions of the prompt that need not be computed."""

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """How often, until now, the session went on elsewhere."""

    async def send(self, step: SendStep) -> None: ...

    async def receive(self) -> Token | Scores: ...


@dataclass(frozen=True)
class TokenInfo:
    """A token of an answer, or one that might have stood in its place."""

    token: int
    data: bytes
    """Its bytes, maybe a part of a character; none for control tokens."""
    logprob: float | None = None
    """Where it is asked for: natural, at temperature 1, before penalties and the like."""
    top: tuple["TokenInfo", ...] = ()
    """The likeliest tokens for the same place, as many as were asked for."""


@dataclass(frozen=True)
class Piece:
    """What there is to show at once: a token, and the text that it makes certain."""

    text: str
    """Maybe none yet. It may begin with what earlier tokens left uncertain."""
    token: TokenInfo | None
    """None for text that was held back until the end of the answer."""


BytesOf = Callable[[int], bytes]
"""The bytes of a token. Raises BadInput when there is no such token."""
Show = Callable[[Piece], None]


@dataclass
class Answer:
    """A finished generation. Times in seconds of the run loop's clock, from the first step sent."""

    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt, not computed again."""
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    token_times_s: list[float] = field(default_factory=list)
    route: tuple[Hop, ...] = ()
    """At the end."""
    recoveries: tuple[Recovery, ...] = ()

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.token_times_s[0] if self.token_times_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """`(n - 1) / (t_last - t_first)`; 0 for fewer than two tokens."""
        if len(self.token_times_s) < 2:
            return 0.0
        return (len(self.token_times_s) - 1) / max(self.token_times_s[-1] - self.token_times_s[0], 1e-9)


@dataclass(frozen=True)
class ScoredText:
    """Teacher-forced scores of a text of `n` tokens."""

    token_ids: list[int]
    next_logprobs: list[float]
    """`[n - 1]`: log-probability of each token after the first."""
    top1: list[int]
    """`[n]`: the likeliest token after each position."""
    top: list[tuple[TokenInfo, ...]]
    """`[n][k]`: the likeliest tokens after each position, as many as were asked for."""

    @property
    def mean_nll(self) -> float:
        return -float(np.mean(self.next_logprobs))


async def generate(
    session: Session,
    generation: Generation,
    *,
    text: TextStream,
    bytes_of: BytesOf,
    show: Show,
    logprobs: int | None = None,
) -> Answer:
    """Run `generation` over `session`; `show` gets a piece for each token at once, also for one that ends the answer.

    `logprobs` is what the session was opened with.

    Raises what the session raises; what was shown until then stays shown.
    """
    started_s = trio.current_time()
    answer = Answer(len(generation.prompt), reusable(len(generation.prompt), session.cached))

    def out(certain: str, token: TokenInfo | None) -> None:
        answer.text += certain
        show(Piece(certain, token))

    pending = list(generation.start(session.cached))
    message: Token | None = None
    while True:
        for action in pending:
            match action:
                case SendStep():
                    await session.send(action)
                case Emit(token=token):
                    assert message is not None, "tokens come from messages"
                    info = _info(message, bytes_of, logprobs)
                    answer.token_ids.append(token)
                    answer.token_times_s.append(trio.current_time() - started_s)
                    out(text.push(info.data), info)
                    if text.stopped:
                        pending = generation.stop()
                        break
                case Finish(reason=reason):
                    if rest := text.finish():
                        out(rest, None)
                    answer.finish_reason = reason
                    answer.route, answer.recoveries = session.route, session.recoveries
                    return answer
        else:
            message = _token(await session.receive())
            pending = generation.on_token(message.position, message.token)


def _token(message: Token | Scores) -> Token:
    if not isinstance(message, Token):
        raise PeerMisbehaved("the pipeline sent scores where a token was asked for")
    return message


def _info(message: Token, bytes_of: BytesOf, logprobs: int | None) -> TokenInfo:
    """What came of a token. Raises PeerMisbehaved for what was not asked for, and for tokens that do not exist."""
    data = _bytes(message.token, bytes_of)
    if logprobs is None:
        return TokenInfo(message.token, data)
    if message.logprob is None or not math.isfinite(message.logprob):
        raise PeerMisbehaved("the pipeline sent no log-probability, which was asked for")
    (top,) = _tops(message.top_ids, message.top_logprobs, 1, logprobs, bytes_of)
    return TokenInfo(message.token, data, message.logprob, top)


def _tops(ids: bytes, logprobs: bytes, rows: int, top: int, bytes_of: BytesOf) -> list[tuple[TokenInfo, ...]]:
    """The `top` likeliest tokens of each of `rows` positions."""
    if not len(ids) == len(logprobs) == 4 * rows * top:
        raise PeerMisbehaved(f"the pipeline did not send the {top} likeliest tokens, which were asked for")
    pairs = zip(np.frombuffer(ids, "<i4").tolist(), np.frombuffer(logprobs, "<f4").tolist(), strict=True)
    infos = [TokenInfo(token, _bytes(token, bytes_of), logprob) for token, logprob in pairs]
    return [tuple(infos[row * top : (row + 1) * top]) for row in range(rows)]


def _bytes(token: int, bytes_of: BytesOf) -> bytes:
    try:
        return bytes_of(token)
    except BadInput as error:
        raise PeerMisbehaved(f"the pipeline answered with token {token}, which the model does not have") from error


async def score(
    session: Session,
    token_ids: Sequence[int],
    *,
    context_max: int,
    chunk: int,
    top: int = 0,
    bytes_of: BytesOf = lambda token: b"",
) -> ScoredText:
    """Log-probability of each next token of `token_ids`, and the likeliest ones, position by position.

    `top`, for which the session was opened, is how many besides the likeliest one's id.
    """
    n = len(token_ids)
    if n < 2:
        raise BadInput(f"a text of {n} tokens has no next token to score: give a longer one")
    if n > context_max:
        raise BadInput(f"the text has {n} tokens, and the context holds {context_max}: give a shorter one")
    next_ids = [*token_ids[1:], 0]  # the last position has no next token; its score is dropped
    cuts = chunks(n, chunk)
    next_logprobs: list[float] = []
    top1: list[int] = []
    tops: list[tuple[TokenInfo, ...]] = []

    for a, b in cuts:
        await session.send(SendStep(a, tuple(token_ids[a:b]), "scores", targets=tuple(next_ids[a:b])))
    for a, b in cuts:
        scores = await session.receive()
        if not isinstance(scores, Scores) or scores.position != a:
            raise PeerMisbehaved("the pipeline did not score what it was asked to")
        if not len(scores.top1) == len(scores.next_logprobs) == 4 * (b - a):
            raise PeerMisbehaved(f"the pipeline did not score all of the {b - a} positions that it was asked to")
        top1 += np.frombuffer(scores.top1, "<i4").tolist()
        next_logprobs += np.frombuffer(scores.next_logprobs, "<f4").tolist()
        tops += _tops(scores.top_ids, scores.top_logprobs, b - a, top, bytes_of)
    return ScoredText(list(token_ids), next_logprobs[: n - 1], top1, tops)
