"""One direction of a link, without I/O: when is what is sent now at the other end?"""

import random

from p2pgrid.bench.profiles import Profile

SEGMENT_BYTES = 1460
"""What one lost packet costs: the payload of a TCP segment on Ethernet."""

STALL_S = 0.2
"""How long a direction stands still for a lost segment: the shortest retransmission timeout of Linux's TCP."""

CHUNK_S = 0.001
"""So much of the line's time is forwarded as one piece, within the two limits below."""
CHUNK_BYTES_MIN = 512
CHUNK_BYTES_MAX = 128 * 1024

LEAD_S = 0.0009
LEAD_S_MAX = 0.004
LEAD_GAIN = 0.05
LATE_S_MAX = 0.001
"""Timers count in whole milliseconds and whoever sleeps is woken late, so it is told to wake earlier, by what makes
it punctual on average. These are the first guess, the most, how fast the guess follows, and what one outlier counts."""

QUEUE_BYTES = 128 * 1024
"""What may wait before the line, besides what is on its way."""


class Line:
    """A rate and a delay, shared by all connections of a node in one direction.

    Bytes leave one after another at the rate, none saved up while nothing is sent: a token bucket that holds
    nothing. Then they travel.
    """

    def __init__(self, profile: Profile, bytes_s: float, rng: random.Random) -> None:
        self.one_way_s = profile.one_way_s
        self.chunk_bytes = int(min(max(bytes_s * CHUNK_S, CHUNK_BYTES_MIN), CHUNK_BYTES_MAX))
        self.held_bytes_max = QUEUE_BYTES + int(bytes_s * (profile.one_way_s + profile.jitter_s / 2))
        """More than this is not taken from one connection: its sender has to wait, as on a real link."""
        self.lead_s = LEAD_S
        """So much before a time of arrival whoever waits for it should be woken."""
        self._profile = profile
        self._bytes_s = bytes_s
        self._rng = rng
        self._free_at = float("-inf")

    def arrival(self, nbytes: int, now: float) -> float:
        """When the last of `nbytes` that are sent now arrives, on the clock of `now`."""
        self._free_at = max(self._free_at, now) + nbytes / self._bytes_s
        swing_s = self._profile.jitter_s / 2
        return self._free_at + self.one_way_s + (self._rng.uniform(-swing_s, swing_s) if swing_s else 0.0)

    def woken(self, late_s: float) -> None:
        """Whoever waited for an arrival was woken so late; early when negative."""
        self.lead_s += LEAD_GAIN * min(max(late_s, -LATE_S_MAX), LATE_S_MAX)
        self.lead_s = min(max(self.lead_s, 0.0), LEAD_S_MAX)

    def loses(self, nbytes: int) -> bool:
        """Whether a segment of these bytes is lost."""
        if not self._profile.loss:
            return False
        segments = -(-nbytes // SEGMENT_BYTES)
        return bool(self._rng.random() > (1 - self._profile.loss) ** segments)

    @property
    def resets_on_loss(self) -> bool:
        return self._profile.on_loss == "reset"
