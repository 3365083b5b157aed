"""Whether the owner of a machine needs it, judged by how busy its other programs keep it.

The owner is back when they were busy for a few seconds on end, and has gone when they were quiet for minutes: a machine
that comes and goes with every click would help nobody.
"""

from dataclasses import dataclass

BACK_S = 3.0
"""A page that loads takes less."""
GONE_S = 300.0
QUIET_SHARE = 0.5
"""Of the load that brings the owner back: only below it is the machine quiet."""


@dataclass(frozen=True)
class OwnerTerms:
    """How much of the machine, 0 to 1 of all its cores, other programs may use, and for how long they must be quiet."""

    load_max: float
    back_s: float = BACK_S
    gone_s: float = GONE_S


class OwnerPolicy:
    """`now_s` is seconds on any clock that only goes forward. At first the owner is taken to be away."""

    def __init__(self, terms: OwnerTerms) -> None:
        self.owner_is_back = False
        self._terms = terms
        self._agreed_s: float | None = None
        """Until when the load agreed with what is thought of the owner."""

    def observe(self, load: float, now_s: float) -> bool:
        """The mean load of other programs since the last call; the first one only begins. Whether the owner is back."""
        terms = self._terms
        if self.owner_is_back:
            differs, patience_s = load <= QUIET_SHARE * terms.load_max, terms.gone_s
        else:
            differs, patience_s = load > terms.load_max, terms.back_s
        if self._agreed_s is None or not differs:
            self._agreed_s = now_s
        elif now_s - self._agreed_s >= patience_s:
            self.owner_is_back = not self.owner_is_back
            self._agreed_s = now_s
        return self.owner_is_back
