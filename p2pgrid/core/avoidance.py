"""Peers that failed us, each left alone for a while that doubles with every failure."""

from dataclasses import dataclass

from p2pgrid.ids import PeerId

AVOID_S_MIN = 2.0
AVOID_S_MAX = 120.0
FORGET_S = 600.0
"""A peer that has not failed for this long begins anew."""
PEERS_MAX = 4096


@dataclass(frozen=True)
class _Failed:
    times: int
    at_s: float

    @property
    def until_s(self) -> float:
        return self.at_s + min(AVOID_S_MIN * 2.0 ** min(self.times - 1, 16), AVOID_S_MAX)


class Avoidance:
    """`now_s` is seconds on any clock that only goes forward."""

    def __init__(self) -> None:
        self._failed: dict[PeerId, _Failed] = {}

    def failed(self, peer: PeerId, now_s: float) -> None:
        """It failed again, or for the first time. What fails while it is avoided anyway counts once."""
        before = self._failed.pop(peer, None)
        if before is not None and now_s < before.until_s:
            self._failed[peer] = before
            return
        times = 1 if before is None or now_s > before.at_s + FORGET_S else before.times + 1
        self._failed[peer] = _Failed(times, now_s)
        if len(self._failed) > PEERS_MAX:
            del self._failed[next(iter(self._failed))]

    def worked(self, peer: PeerId) -> None:
        """It did what it was asked to: all is forgotten."""
        self._failed.pop(peer, None)

    def avoided(self, now_s: float) -> frozenset[PeerId]:
        """Those to be left alone now."""
        return frozenset(peer for peer, failed in self._failed.items() if now_s < failed.until_s)

    def pardon(self) -> None:
        """Nobody else is left: those who failed are asked again."""
        self._failed.clear()
