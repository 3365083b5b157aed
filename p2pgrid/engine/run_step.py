"""One step through one stage, and what comes of it: the same code in a node, in one process and in a simulation."""

from dataclasses import dataclass
from typing import Literal

from p2pgrid.core.sampling import sample, score
from p2pgrid.engine.stage import Stage
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats, Ints

Want = Literal["nothing", "token", "scores"]


@dataclass(frozen=True)
class HiddenOut:
    """For the next stage: `[n, hidden]`."""

    hidden: Floats


@dataclass(frozen=True)
class TokenOut:
    """Sampled for the position behind the step."""

    token: int


@dataclass(frozen=True)
class ScoresOut:
    """The likeliest tokens `[n]` and the targets' log-probabilities `[n]`."""

    top1: Ints
    next_logprobs: Floats


StepOut = HiddenOut | TokenOut | ScoresOut | None


def is_last(stage: Stage) -> bool:
    return stage.span.stop == stage.layers


def run_step(
    stage: Stage,
    row: int,
    position: int,
    tokens: Ints,
    hidden: Floats | None,
    *,
    want: Want,
    targets: Ints,
    sampling: Sampling,
) -> StepOut:
    """Run `tokens` `[n]` (and `hidden` `[n, hidden]` beyond layer 0) from `position` on; see `Stage.step`.

    Every stage but the last gives hidden states; the last one what is wanted. `targets` is `[n]` for scores.
    """
    if not is_last(stage):
        return HiddenOut(stage.step(row, position, tokens, hidden, 0))
    match want:
        case "nothing":
            stage.step(row, position, tokens, hidden, 0)
            return None
        case "token":
            logits = stage.step(row, position, tokens, hidden, 1)
            return TokenOut(sample(logits[-1], sampling, position + len(tokens)))
        case "scores":
            return ScoresOut(*score(stage.step(row, position, tokens, hidden, len(tokens)), targets))
