"""How the last stage draws the tokens of one session, and how it tells them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from p2pgrid.core.sampling import Logprobs, Scored, adjusted, adjusts, logprobs, restricted, sample, score
from p2pgrid.ids import SessionId
from p2pgrid.wire.messages import Sampling, Scores, Token
from p2pgrid.wire.tensors import Floats, Ints, pack_floats, pack_ints


class Grammar(Protocol):
    """Which answers are allowed. Both methods raise LocalFault for one that is not, or when none may follow it."""

    def follow(self, answer: list[int]) -> None:
        """The answer is now this: do the work that each token of it takes."""

    def allowed(self, answer: list[int]) -> npt.NDArray[np.bool_]:
        """`[vocab]`, at least one: the tokens that may stand behind `answer`."""


@dataclass(frozen=True)
class Drawn:
    """A token, and how likely it was if that is wanted."""

    token: int
    logprobs: Logprobs | None = None


class Drawer:
    """Draws the tokens of one session. Where it must know the answer so far, it knows it from the steps that ran."""

    grammar: Grammar | None = None
    """What holds the answer in its form; given before the first step."""

    def __init__(self, sampling: Sampling, *, prompt_length: int = 0, logprobs: int | None = None) -> None:
        """`logprobs` is how many alternatives are told with each token; None = tell no log-probabilities."""
        self._sampling = sampling
        self._prompt_length = prompt_length
        self._logprobs = logprobs
        self._adjusts = adjusts(sampling)
        self._answer: list[int] = []

    def saw(self, position: int, tokens: Sequence[int]) -> None:
        """A step ran: the row's text from `position` on is `tokens`, and nothing behind them.

        Raises LocalFault for an answer that leaves the grammar.
        """
        if not self._adjusts and self.grammar is None:
            return
        at = position - self._prompt_length
        del self._answer[max(at, 0) :]
        self._answer += tokens[max(-at, 0) :]
        if self.grammar is not None:
            self.grammar.follow(self._answer)

    def draw(self, logits: Floats, position: int) -> Drawn:
        """The token for `position` from the logits `[vocab]` before it.

        Raises LocalFault when they are not finite, or the answer has left the grammar.
        """
        wanted = adjusted(logits, self._sampling, self._answer) if self._adjusts else logits
        if self.grammar is not None:
            wanted = restricted(wanted, self.grammar.allowed(self._answer))
        token = sample(wanted, self._sampling, position)
        if self._logprobs is None:
            return Drawn(token)
        return Drawn(token, logprobs(logits, token, self._logprobs))

    def score(self, logits: Floats, targets: Ints) -> Scored:
        """See `core.sampling.score`."""
        return score(logits, targets, self._logprobs or 0)


def token_message(drawn: Drawn, session: SessionId, epoch: int, position: int) -> Token:
    """What the client is told of the token for `position`."""
    known = drawn.logprobs
    if known is None:
        return Token(session, epoch, position, drawn.token)
    top = pack_ints(known.top_ids), pack_floats(known.top)
    return Token(session, epoch, position, drawn.token, known.chosen, *top)


def scores_message(scored: Scored, session: SessionId, epoch: int, position: int) -> Scores:
    """What the client is told of positions from `position` on."""
    return Scores(
        session,
        epoch,
        position,
        pack_ints(scored.top1),
        pack_floats(scored.next_logprobs),
        scored.top_ids.astype("<i4").tobytes(),
        pack_floats(scored.top_logprobs),
    )
