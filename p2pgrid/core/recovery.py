"""Going on in mid-answer after stages were lost: where to go on, and who sends what the new stages lack.

A stage keeps the steps that it sent downstream (its outbox). A new stage is filled by the nearest stage before it that
still holds those steps; only the stages in between compute them again. Steps are replayed with the boundaries that
they had, because a step of one position rounds differently from a longer one; docs/decisions/0018 says more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from p2pgrid.core.generation import SendStep, chunks
from p2pgrid.ids import PeerId
from p2pgrid.wire.messages import Hop

CLIENT = -1
"""The hop before stage 0: the client, who has the token ids."""


@dataclass(frozen=True)
class Held:
    """A stage's row holds positions `[0, length)`; what it sent of `[replays_from, length)` it can send again."""

    length: int
    replays_from: int


@dataclass(frozen=True)
class Feed:
    """`hop` (or CLIENT) sends its steps for positions `[start, stop)` again, and they go as far as hop `through`."""

    hop: int
    start: int
    stop: int
    through: int


@dataclass(frozen=True)
class Recovery:
    """An answer was interrupted and went on."""

    answers: int
    """How many tokens (or scored steps) had come until then."""
    lost: tuple[PeerId, ...]
    """Whom the client left out, the first one first."""
    took_s: float
    """From noticing it until the new route had all that it needed."""
    replayed: int = 0
    """Positions that a stage had to compute again."""


def kept_hops(before: Sequence[Hop], after: Sequence[Hop]) -> list[int]:
    """Hops of the route `after` that the route `before` had too: same peer, same layers."""
    known = {(hop.peer, hop.span) for hop in before}
    return [i for i, hop in enumerate(after) if (hop.peer, hop.span) in known]


def plan_feeds(held: Sequence[Held], start: int) -> list[Feed]:
    """Who fills which stages, so that every stage holds positions `[0, start)` before the session goes on there.

    Segments of the route do not overlap; a stage inside one that holds everything computes it again, with the same
    result. A feeder holds everything itself and can replay all that any stage of its segment lacks.
    """
    feeds: list[Feed] = []
    through = len(held) - 1
    while through >= 0:
        if held[through].length >= start:
            through -= 1
            continue
        lacking_from = held[through].length
        feeder = through - 1
        while feeder >= 0 and not (held[feeder].length >= start and held[feeder].replays_from <= lacking_from):
            lacking_from = min(lacking_from, held[feeder].length)
            feeder -= 1
        feeds.append(Feed(max(feeder, CLIENT), lacking_from, start, through))
        through = feeder
    return feeds


class Transcript:
    """What a client sent in one session, step by step, and how far it was answered.

    Steps that the last stage feeds to stage 0 by itself count as sent: one position, the token that was drawn.
    """

    def __init__(self, prompt: Sequence[int], chunk: int) -> None:
        """`prompt` is needed where the first step may begin behind cached positions; `chunk` cuts those."""
        self._prompt = tuple(prompt)
        self._chunk = chunk
        self._steps: list[SendStep] = []
        self._answered = 0

    def sent(self, step: SendStep) -> None:
        """A step leaves; what stood at its position and behind it does so no more."""
        while self._steps and self._steps[-1].position >= step.position:
            self._steps.pop()
        self._steps.append(step)

    def drawn(self, position: int, token: int) -> None:
        """The last stage drew `token` for `position`. One that does not come next says nothing."""
        if not self._steps:
            return
        last = self._steps[-1]
        if position == _stop(last) and last.want == "token":
            self._answered = position
            self._steps.append(SendStep(position, (token,), "token", last.until))

    def scored(self, position: int) -> None:
        """The last stage scored the step at `position`. One that does not come next says nothing."""
        for step in self._steps:
            if step.position == position == self._answered:
                self._answered = _stop(step)

    def resume_at(self, length: int) -> int:
        """Where to go on when the stages that are left hold `length` positions or more: always a step's beginning.

        What was answered was run by all of them, whatever `length` says; what was not answered is asked again.
        """
        best = self._answered
        for step in self._steps:
            if self._answered <= step.position <= length:
                best = max(best, step.position)
            if step.position >= self._answered and step.want != "nothing":
                break
        return best

    def between(self, start: int, stop: int) -> list[SendStep]:
        """Steps that ask for nothing and cover positions `[start, stop)`, both beginnings of steps or cached before."""
        begin = self._steps[0].position if self._steps else 0
        cached = [SendStep(a, self._prompt[a:b], "nothing") for a, b in chunks(begin, self._chunk)]
        steps = [step for step in (*cached, *self._steps) if step.position < stop and _stop(step) > start]
        return [replace(step, want="nothing", until=0, targets=()) for step in steps]

    def since(self, start: int) -> list[SendStep]:
        """The steps from position `start` on, which is what `resume_at` gave, asking for what they asked."""
        begin = self._steps[0].position if self._steps else 0
        return [*self.between(start, begin), *(step for step in self._steps if step.position >= start)]


def _stop(step: SendStep) -> int:
    return step.position + len(step.tokens)


def left_out_by_turns(lost: Sequence[PeerId], busy: Collection[PeerId], attempt: int) -> list[set[PeerId]]:
    """Whom a route is to do without, the most first: the first of these sets that leaves a route is the one.

    Everybody who failed or is busy. If that leaves none, then at odd attempts busy ones are asked again, and at even
    ones those who failed, without the busy ones: they may be back before somebody has room. Of those who failed only
    as many as there must be, the first of `lost` first.
    """
    by_lost = [set(lost[i:]) for i in range(len(lost) + 1)]
    without_busy = [without | set(busy) for without in by_lost]
    return (without_busy[:1] if attempt % 2 else without_busy) + by_lost
