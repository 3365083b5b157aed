"""The client's side of one generation, as a machine: what to send, what to show, when it is over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from p2pgrid.core.prefix import reusable
from p2pgrid.errors import BadInput, PeerMisbehaved

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SendStep:
    """Have the pipeline run `tokens` from `position` on."""

    position: int
    tokens: tuple[int, ...]
    want: Literal["nothing", "token", "scores"]
    until: int = 0
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Emit:
    """A token of the answer."""

    token: int


@dataclass(frozen=True)
class Finish:
    """The answer is complete."""

    reason: FinishReason


Action = SendStep | Emit | Finish


def chunks(length: int, size: int) -> list[tuple[int, int]]:
    """Cut `[0, length)` into prefill steps `[start, stop)` of `size` positions; none for a length of 0.

    No step has exactly one position unless the whole text has: a single row takes another kernel, whose last
    bits differ from the same row inside a larger step. A remainder of one borrows from the step before it.
    """
    if size < 3:
        raise ValueError("a prefill step has at least 3 positions, so that one can be lent to the last step")
    starts = list(range(0, length, size))
    if not starts:
        return []
    if length > size and length - starts[-1] == 1:
        starts[-1] -= 1
    return list(zip(starts, [*starts[1:], length], strict=True))


class Generation:
    """One answer: feeds the prompt in chunks, collects tokens, knows when to stop. Does no I/O.

    With `run_ahead` the last stage feeds each token to stage 0 itself; without it (one process, or a
    pipeline whose client wants to be asked) the machine sends the step for each token.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_tokens: Sequence[int],
        context_max: int,
        chunk: int,
        run_ahead: bool,
    ) -> None:
        if not prompt:
            raise BadInput("the prompt is empty: give at least one token of text")
        if max_tokens < 1:
            raise BadInput(f"max-tokens is {max_tokens}: ask for at least 1")
        if len(prompt) >= context_max:
            raise BadInput(
                f"the prompt has {len(prompt)} tokens, and the context holds {context_max} with at least one for"
                " the answer: shorten it"
            )
        self.prompt = tuple(prompt)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokens_max = min(max_tokens, context_max - len(prompt))
        self._stop_tokens = frozenset(stop_tokens)
        self._chunk = chunk
        self._run_ahead = run_ahead
        # The token at the last position is shown but never run.
        self._until = len(prompt) + self._tokens_max - 1 if run_ahead else 0

    @property
    def positions(self) -> int:
        """How many positions the whole answer may take."""
        return len(self.prompt) + self._tokens_max

    @property
    def next_position(self) -> int:
        return len(self.prompt) + len(self.tokens)

    def start(self, cached: int = 0) -> list[Action]:
        """The prompt's steps: chunks that ask for nothing, then the last token in a step of its own.

        The first `cached` positions are held by every stage already. Each token of an answer, the first one too, is
        sampled from a step of one position, whose kernel rounds differently from that of a longer step.
        """
        last = len(self.prompt) - 1
        begin = reusable(len(self.prompt), cached)
        cuts = [(begin + a, begin + b) for a, b in chunks(last - begin, self._chunk)]
        prefill: list[Action] = [SendStep(a, self.prompt[a:b], "nothing") for a, b in cuts]
        return [*prefill, SendStep(last, self.prompt[last:], "token", self._until)]

    def on_token(self, position: int, token: int) -> list[Action]:
        """The last stage sampled `token` for `position`."""
        if self.finish_reason is not None or position < self.next_position:
            return []  # a token that was on its way when we stopped, or one sent twice
        if position > self.next_position:
            raise PeerMisbehaved(f"a token for position {position} while {self.next_position} is the next one")
        self.tokens.append(token)
        actions: list[Action] = [Emit(token)]
        if token in self._stop_tokens:
            return [*actions, self._finish("stop")]
        if len(self.tokens) == self._tokens_max:
            return [*actions, self._finish("length")]
        if not self._run_ahead:
            actions.append(SendStep(position, (token,), "token"))
        return actions

    def stop(self) -> list[Action]:
        """A stop string was seen in the text, be it that of the last token allowed."""
        return [] if self.finish_reason == "stop" else [self._finish("stop")]

    def _finish(self, reason: FinishReason) -> Finish:
        self.finish_reason = reason
        return Finish(reason)
