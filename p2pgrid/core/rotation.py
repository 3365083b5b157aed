"""Where stages of one machine compute in turns: whether a prefill step or decode steps are next. Pure.

docs/decisions/0017 weighs it.
"""

import math
from typing import NamedTuple

from p2pgrid.core.batching import Kind

DECODES_MAX = 3
"""Turns of decode steps before the next prefill step's: in so many an answer goes round the usual number of stages.
Fewer, once they took as long as the last prefill step did: nobody's prompt waits for many answers."""
ON_THE_WAY_S = 0.005
"""So soon after decode steps ran at one stage they are at the next; a prefill step that is not due waits for that."""


class Rotation(NamedTuple):
    """What the stages of this machine computed lately."""

    decodes: int = 0
    """Turns of decode steps since the last prefill step."""
    owed_s: float = 0.0
    """How much longer that took than they did."""
    ended_at: float = -math.inf
    """When the last turn ended, by the machine's monotonic clock."""

    @property
    def prefill_is_due(self) -> bool:
        return self.decodes >= DECODES_MAX or self.owed_s <= 0

    def holds_prefill_back(self, decodes_wait: bool, now: float) -> bool:
        """Whether decode steps go before a prefill step: those that wait, or that will soon be at the next stage."""
        # An `ended_at` in the future is from before a reboot.
        on_the_way = self.decodes > 0 and self.ended_at <= now < self.ended_at + ON_THE_WAY_S
        return not self.prefill_is_due and (decodes_wait or on_the_way)

    def after(self, kind: Kind, took_s: float, now: float) -> "Rotation":
        if kind == "prefill":
            return Rotation(0, took_s, now)
        return Rotation(min(self.decodes + 1, DECODES_MAX), self.owed_s - took_s, now)
