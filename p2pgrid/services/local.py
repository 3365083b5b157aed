"""The whole model in this one process: the same steps through the same engine, and no network."""

from collections import deque
from functools import partial

from p2pgrid.core.drawing import Drawer, Drawn, scores_message, token_message
from p2pgrid.core.generation import SendStep
from p2pgrid.core.recovery import Recovery
from p2pgrid.core.sampling import Scored
from p2pgrid.engine.run_step import run_step
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import LocalFault
from p2pgrid.ids import SessionId
from p2pgrid.wire.messages import Hop, Scores, Token
from p2pgrid.wire.tensors import pack_ints, unpack_ints

LOCAL = SessionId("0" * 32)


class LocalSession:
    """A session on row 0 of a stage that holds every layer; the twin of `PipelineSession`."""

    route: tuple[Hop, ...] = ()
    cached = 0
    recoveries: tuple[Recovery, ...] = ()

    def __init__(self, stage: Stage, executor: Executor, drawer: Drawer) -> None:
        self._stage = stage
        self._executor = executor
        self._drawer = drawer
        self._answers: deque[Token | Scores] = deque()

    async def send(self, step: SendStep) -> None:
        """Run the step now. Raises LocalFault."""
        position = step.position
        work = partial(
            run_step,
            self._stage,
            0,
            position,
            unpack_ints(pack_ints(step.tokens), self._stage.vocab),
            None,
            want=step.want,
            targets=unpack_ints(pack_ints(step.targets), self._stage.vocab),
            drawer=self._drawer,
        )
        match await self._executor.run(work):
            case Drawn() as drawn:
                self._answers.append(token_message(drawn, LOCAL, 0, position + len(step.tokens)))
            case Scored() as scored:
                self._answers.append(scores_message(scored, LOCAL, 0, position))
            case _:
                pass

    async def receive(self) -> Token | Scores:
        if not self._answers:
            raise LocalFault("an answer was waited for that no step asked for")
        return self._answers.popleft()
