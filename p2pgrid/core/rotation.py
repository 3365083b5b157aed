"""Where stages of one machine compute in turns: whether a prefill step or decode steps are next, and whose. Pure.

docs/decisions/0017 weighs it.
"""

import math
from typing import NamedTuple

from p2pgrid.core.batching import PREFILL_POSITIONS_MAX, Kind

DECODES_MAX = 4
"""Turns of decode steps before the next prefill step's: in so many an answer goes round the usual number of stages, and
one that has just begun joins it. Fewer, once they took as long as the prefill steps did: nobody's prompt waits for
many answers."""
ON_THE_WAY_S = 0.005
"""So soon after decode steps ran at one stage they are at the next; a prefill step that is not due waits for that, and
so do decode steps at other stages."""
PASSED_OVER_MAX = 2
"""So many turns others let go before theirs, to those that go round and join them."""


class Rotation(NamedTuple):
    """What the stages of this machine computed lately."""

    decodes: int = 0
    """Turns of decode steps since the last prefill step."""
    prefilled: int = 0
    """Positions of the prefill steps since the last decode steps, or before those."""
    owed_s: float = 0.0
    """How much longer those prefill steps took than the decode steps since."""
    ended_at: float = -math.inf
    """When the last turn ended, by the machine's monotonic clock."""
    turns: int = 0
    """Turns of decode steps so far."""
    onward: int = 0
    """The stage of this machine to which the steps of the last turn went on; 0 = none, or they were a prefill's."""

    @property
    def prefill_is_due(self) -> bool:
        few_yet = self.decodes == 0 and self.prefilled < PREFILL_POSITIONS_MAX
        return few_yet or self.decodes >= DECODES_MAX or self.owed_s <= 0

    def holds_prefill_back(self, decodes_wait: bool, now: float) -> bool:
        """Whether decode steps go before a prefill step: those that wait, or that will soon be at the next stage."""
        on_the_way = self.decodes > 0 and self._ended_lately(now)
        return not self.prefill_is_due and (decodes_wait or on_the_way)

    def holds_decodes_back(self, stage: int, since: int, now: float) -> bool:
        """Whether the decode steps that wait at `stage`, since so many turns had been, let others go first: those of
        the last turn, which are about to be at the next stage. Were they to go round in turn with these, they would
        never meet; this way the ones that wait are joined, and from then on a round takes half as many turns.
        """
        follows = self.onward not in (0, stage) and self.turns - since < PASSED_OVER_MAX
        return follows and self._ended_lately(now)

    def _ended_lately(self, now: float) -> bool:
        # An `ended_at` in the future is from before a reboot.
        return self.ended_at <= now < self.ended_at + ON_THE_WAY_S

    def after(self, kind: Kind, positions: int, took_s: float, now: float, onward: int = 0) -> "Rotation":
        """`positions` of a prefill step, and where decode steps went `onward`; of the others they do not matter."""
        if kind == "decode":
            decodes, owed_s = min(self.decodes + 1, DECODES_MAX), self.owed_s - took_s
            return Rotation(decodes, self.prefilled, owed_s, now, self.turns + 1, onward)
        if self.decodes:
            return Rotation(0, positions, took_s, now, self.turns)
        return Rotation(0, self.prefilled + positions, self.owed_s + took_s, now, self.turns)
