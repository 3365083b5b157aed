"""Continuous batching: which of the steps that wait at a stage run next, and together. Touches no tensor.

The policy is a table in docs/scheduling.md.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

BATCH_ROWS_MAX = 32
"""Most rows in one decode batch."""
PREFILL_POSITIONS_MAX = 64
"""Positions of prefill steps that run one after another while steps of one position wait; a longer step runs alone.
Many answers that begin at once then run together soon, and not ever more of them in turn with each other's prompts."""
Kind = Literal["decode", "prefill"]
"""Of a step: one position, or more."""
CLIENTS_MAX = 4096
"""Clients whose last turn is remembered."""


@dataclass(frozen=True)
class Waiting:
    """The next step of one row."""

    row: int
    client: str
    count: int
    """Positions: one is a decode step, more a prefill step."""
    draft: bool = False
    """A guessed decode step. Of a prefill step it means nothing."""


class _Turns:
    """Who was served when, so that slots go round among clients."""

    def __init__(self) -> None:
        self._served: OrderedDict[str, int] = OrderedDict()
        self._turn = 0

    def pick(self, waiting: Iterable[Waiting], limit: int) -> list[Waiting]:
        """At most `limit` of `waiting`: one a client and round, the client served least recently first.

        Within a client, and among clients never served, they go in the order given.
        """
        queues: dict[str, deque[Waiting]] = {}
        for step in waiting:
            queues.setdefault(step.client, deque()).append(step)
        picked: list[Waiting] = []
        while queues and len(picked) < limit:
            for client in sorted(queues, key=lambda each: self._served.get(each, -1))[: limit - len(picked)]:
                picked.append(queues[client].popleft())
                self._note(client)
                if not queues[client]:
                    del queues[client]
        return picked

    def _note(self, client: str) -> None:
        self._turn += 1
        self._served[client] = self._turn
        self._served.move_to_end(client)
        if len(self._served) > CLIENTS_MAX:
            self._served.popitem(last=False)


class Scheduler:
    """Steps that wait, at most one a row, in the order in which they came."""

    def __init__(self, rows_max: int = BATCH_ROWS_MAX) -> None:
        if rows_max < 1:
            raise ValueError(f"a batch of at most {rows_max} rows")
        self._rows_max = rows_max
        self._waiting: dict[int, Waiting] = {}
        self._prefill_turns = _Turns()
        self._decode_turns = _Turns()
        # Apart from the decode turns: who drafts much is not served later for it, nor sooner.
        self._draft_turns = _Turns()
        self._prefill_left = 0
        """Positions that prefill steps may take before those of one position that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def decode_rows(self) -> int:
        """How many rows `next` would give if only steps of one position wait; 0 otherwise."""
        if any(step.count > 1 for step in self._waiting.values()):
            return 0
        return min(len(self._waiting), self._rows_max)

    @property
    def kind(self) -> Kind:
        """What waits: decode steps, perhaps beside prefill steps, or prefill steps alone."""
        return "decode" if any(step.count == 1 for step in self._waiting.values()) else "prefill"

    def add(self, step: Waiting) -> None:
        """The caller adds a row's next step once the one before was taken. Raises ValueError otherwise."""
        if step.count < 1:
            raise ValueError(f"a step of {step.count} positions")
        if step.row in self._waiting:
            raise ValueError(f"a step of row {step.row} waits already")
        self._waiting[step.row] = step

    def remove(self, row: int) -> None:
        """Whatever waits for `row` does so no more."""
        self._waiting.pop(row, None)

    def next(self, *, prefill_is_due: bool = True) -> list[Waiting]:
        """One prefill step, or up to `rows_max` steps of one position; empty when nothing waits.

        Unless `prefill_is_due`, no prefill step as long as any step of one position waits.
        """
        steps = self._waiting.values()
        prefills = [step for step in steps if step.count > 1]
        # The longest, because which of them is next is the clients' turns to say.
        longest = max((step.count for step in prefills), default=0)
        fits = prefill_is_due and self._prefill_left >= min(longest, PREFILL_POSITIONS_MAX)
        if prefills and (fits or len(prefills) == len(steps)):
            batch = self._prefill_turns.pick(prefills, 1)
        else:
            decodes = [step for step in steps if step.count == 1 and not step.draft]
            drafts = [step for step in steps if step.count == 1 and step.draft]
            batch = self._decode_turns.pick(decodes, self._rows_max)
            batch += self._draft_turns.pick(drafts, self._rows_max - len(batch))
        for step in batch:
            del self._waiting[step.row]
            self._prefill_left = PREFILL_POSITIONS_MAX if step.count == 1 else self._prefill_left - step.count
        return batch
