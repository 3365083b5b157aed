"""A session's place at a stage, which its own task and the loop share."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.stage_session import StageSession
from p2pgrid.ids import PeerId
from p2pgrid.services.worker.sent import SentSteps
from p2pgrid.wire.messages import SessionMessage, Step


@dataclass(frozen=True)
class Queued:
    """A step that waits, and how to give its credit back."""

    step: Step
    release: Callable[[], None]


class Seat:
    """A session's place at this stage: its machine, its KV row, the steps that wait and the messages that wait."""

    def __init__(self, machine: StageSession, row: int, sent: SentSteps) -> None:
        self.machine = machine
        self.row = row
        opening = machine.opening
        self.drawer = Drawer(opening.sampling, prompt_length=opening.prompt_length, logprobs=opening.logprobs)
        """Used by the step that runs, and by nobody else."""
        self.sent = sent
        # Unbounded in number, bounded in bytes: a step's share of its link's window is given back only when
        # the step was run.
        self.steps: deque[Queued] = deque()
        self.waits = False
        """The scheduler has its first step."""
        self.runs = False
        self.until = 0
        """The client's grant, by the latest step."""
        self.outbox: deque[tuple[PeerId, SessionMessage]] = deque()
        """What a link had no room for. No step is run while something is here, so a slow neighbour slows us."""
        self.entered = False
        self.halted = machine.epoch > 0
        """No step is run: the client has not yet said what is to be sent again."""
        self.deaf = False
        """No step is taken: the epoch is over, and the next one has not begun."""
        self.ended = False
        self.heard_at = trio.current_time()
        self.news = trio.lowlevel.ParkingLot()
        """For tasks that wait: something is to be sent, or a step is over."""
        self.replay: Iterator[Step] | None = None
        """What goes out before anything else, once the client has said so; then no more `halted`."""

    async def at_rest(self) -> None:
        """Return once no step runs."""
        while self.runs:
            await self.news.park()
