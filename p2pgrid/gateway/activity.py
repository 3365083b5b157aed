"""What the gateway's answers do just now, for whoever shows it.

An answer reports through the `RunningAnswer` that `Activity.begin` gives it: that its session is open, each token, its
end. Whoever shows it looks at `Activity.answers()` as often as it likes: that is always whole and never long, so a
slow reader holds up nobody, and nothing is kept for it.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import trio

from p2pgrid.core.recovery import Recovery
from p2pgrid.errors import P2pgridError
from p2pgrid.ids import ModelId
from p2pgrid.wire.messages import Hop

FINISHED_MAX = 32
"""Answers that are still shown when they are over."""

State = Literal["waiting", "running", "finished", "failed", "cancelled"]


class Carrier(Protocol):
    """The session that carries an answer: where it runs just now, and how often it went on elsewhere until now."""

    @property
    def route(self) -> tuple[Hop, ...]: ...

    @property
    def recoveries(self) -> tuple[Recovery, ...]: ...


class RunningAnswer:
    """One answer, from the request on. Times in seconds of trio's clock. What was asked and said is not in it."""

    def __init__(self, number: int, request: str, model: ModelId) -> None:
        self.number = number
        """Counts up from 1, of each answer its own."""
        self.request = request
        """The `id` that the client is told; the choices of one request have it in common."""
        self.model = model
        self.state: State = "waiting"
        """`waiting` = for a session; `cancelled` = the client went away, or the gateway stops."""
        self.tokens = 0
        self.began_s = trio.current_time()
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.route: tuple[Hop, ...] = ()
        """The stages that work on it, in order; when it is over, the last ones that did."""
        self.recoveries: tuple[Recovery, ...] = ()
        self._carrier: Carrier | None = None

    def opened(self, carrier: Carrier) -> None:
        """The session stands; from now on `carrier` is asked where it is."""
        self._carrier = carrier
        self.state = "running"
        self._look()

    def token(self) -> None:
        """One more token came."""
        self.last_token_s = trio.current_time()
        if self.first_token_s is None:
            self.first_token_s = self.last_token_s
        self.tokens += 1
        self._look()

    def ended(self, state: State) -> None:
        self._look()
        self._carrier = None
        self.state = state

    def _look(self) -> None:
        if self._carrier is not None:
            self.route, self.recoveries = self._carrier.route, self._carrier.recoveries


class Activity:
    """The answers that run, and the last ones that did. Belongs to one gateway."""

    def __init__(self) -> None:
        self.begun = 0
        """Answers until now."""
        self._tokens_over = 0
        self._running: dict[int, RunningAnswer] = {}
        self._over: deque[RunningAnswer] = deque(maxlen=FINISHED_MAX)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def tokens(self) -> int:
        """Of all answers until now."""
        return self._tokens_over + sum(answer.tokens for answer in self._running.values())

    def answers(self) -> list[RunningAnswer]:
        """Those that are over, then those that run, each in order of their start."""
        return [*self._over, *self._running.values()]

    @contextmanager
    def begin(self, request: str, model: ModelId) -> Iterator[RunningAnswer]:
        """An answer that is over when the context ends: `failed` by an error of ours, `cancelled` when cut short."""
        self.begun += 1
        answer = RunningAnswer(self.begun, request, model)
        self._running[answer.number] = answer
        end: State = "cancelled"
        try:
            yield answer
            end = "finished"
        except P2pgridError:
            end = "failed"
            raise
        finally:
            del self._running[answer.number]
            self._over.append(answer)
            self._tokens_over += answer.tokens
            answer.ended(end)
