"""One step through one stage, and what comes of it: the same code in a node, in one process and in a simulation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from p2pgrid.core.drawing import Drawer, Drawn
from p2pgrid.core.sampling import Scored
from p2pgrid.engine.stage import Stage
from p2pgrid.errors import LocalFault
from p2pgrid.wire.tensors import Floats, Ints

Want = Literal["nothing", "token", "scores"]


@dataclass(frozen=True)
class HiddenOut:
    """For the next stage: `[n, hidden]`."""

    hidden: Floats


StepOut = HiddenOut | Drawn | Scored | None
"""A token is drawn for the position behind the step."""


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
    drawer: Drawer,
) -> StepOut:
    """Run `tokens` `[n]` (and `hidden` `[n, hidden]` beyond layer 0) from `position` on; see `Stage.step`.

    Every stage but the last gives hidden states; the last one what is wanted. `targets` is `[n]` for scores.
    """
    if not is_last(stage):
        return HiddenOut(stage.step(row, position, tokens, hidden, 0))
    drawer.saw(position, tokens.tolist())
    match want:
        case "nothing":
            stage.step(row, position, tokens, hidden, 0)
            return None
        case "token":
            logits = stage.step(row, position, tokens, hidden, 1)
            return drawer.draw(logits[-1], position + len(tokens))
        case "scores":
            return drawer.score(stage.step(row, position, tokens, hidden, len(tokens)), targets)


@dataclass(frozen=True)
class RowStep:
    """One position of one row, as a part of a batch."""

    row: int
    position: int
    token: int
    hidden: Floats | None
    """`[hidden]`, beyond layer 0."""
    want: Literal["nothing", "token"]
    drawer: Drawer


def run_rows(stage: Stage, steps: Sequence[RowStep]) -> list[StepOut | LocalFault]:
    """What `run_step` gives for each of `steps`, whose rows are all different, computed in one go.

    A row whose logits are not finite has its LocalFault in its place: the others cannot help it. Raises LocalFault
    when the runtime fails.
    """
    hidden = None if steps[0].hidden is None else np.stack([step.hidden for step in steps if step.hidden is not None])
    tokens = np.array([step.token for step in steps], np.int32)
    output = stage.step_rows([step.row for step in steps], [step.position for step in steps], tokens, hidden)
    if not is_last(stage):
        return [HiddenOut(output[i : i + 1]) for i in range(len(steps))]
    return [_sampled(logits, step) for logits, step in zip(output, steps, strict=True)]


def _sampled(logits: Floats, step: RowStep) -> Drawn | LocalFault | None:
    try:
        step.drawer.saw(step.position, (step.token,))
        if step.want == "nothing":
            return None
        return step.drawer.draw(logits, step.position + 1)
    except LocalFault as fault:
        return fault
