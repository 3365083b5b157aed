"""Admission: a session's room is reserved when it opens, so that no allocation ever fails in the middle of it."""

from collections.abc import Hashable

RETRY_S_MIN = 0.1
RETRY_S_MAX = 5.0
LIFETIME_S = 2.0
"""What a session's life is taken for before the first one has ended."""
LIFETIME_WEIGHT = 0.2
"""Of the latest life in the moving average."""


class KvBudget:
    """`bytes_max` for all sessions together; what they leave may hold prefixes of finished ones.

    `now` is seconds on any clock that only goes forward.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._reserved = 0
        self._held: dict[Hashable, tuple[int, float]] = {}
        self._lifetime_s = LIFETIME_S

    @property
    def reserved(self) -> int:
        """Bytes that sessions may come to hold."""
        return self._reserved

    @property
    def cache_room(self) -> int:
        """Bytes that the prefix cache may hold now: sessions come first, and it yields at once."""
        return self.bytes_max - self._reserved

    def fits_ever(self, nbytes: int) -> bool:
        """Whether there would be room for `nbytes` if nobody else were here."""
        return nbytes <= self.bytes_max

    def reserve(self, owner: Hashable, nbytes: int, now: float) -> bool:
        """Whether there is room; then it is the owner's until `release`. Raises ValueError for a second one."""
        if owner in self._held:
            raise ValueError(f"{owner} holds a reservation already")
        if nbytes < 0:
            raise ValueError(f"room for {nbytes} bytes")
        if nbytes > self.cache_room:
            return False
        self._held[owner] = (nbytes, now)
        self._reserved += nbytes
        return True

    def release(self, owner: Hashable, now: float) -> None:
        """Idempotent."""
        if owner not in self._held:
            return
        nbytes, since = self._held.pop(owner)
        self._reserved -= nbytes
        self._lifetime_s += LIFETIME_WEIGHT * (now - since - self._lifetime_s)

    def retry_after_s(self) -> float:
        """When one of the n sessions held now will probably have ended: after 1/n of a life, within the limits above.

        A session that is refused for want of rows, not of memory, waits for the same thing.
        """
        return min(max(self._lifetime_s / max(len(self._held), 1), RETRY_S_MIN), RETRY_S_MAX)
