"""How many bytes a second a link carries, timed by pings that go right behind bursts; without I/O.

How long a write takes says nothing: the buffers of two kernels swallow the first megabytes of any burst. Credit comes
back when a message was computed, not when it was read. But a ping is answered as soon as it is read, and so when all
that was written before it has arrived. Whatever disturbs a sample (a busy peer, other traffic) makes it slower,
never faster; so of the last few the fastest counts, as in BBR (https://queue.acm.org/detail.cfm?id=3022184).
"""

from collections import deque
from dataclasses import dataclass

BURST_BYTES_MIN = 64 * 1024
"""Less says more about the round trip than about the link."""
SAMPLES = 8
TRANSFER_S_MIN = 1e-4
TIMED_MAX = 64
"""Bursts whose pings may be under way; more are timed as one."""
RTT_SHARE_MIN = 0.1
"""A round trip is not known more closely than this; a transfer that seems to have taken less took this long."""


@dataclass(frozen=True)
class _Timed:
    """A burst whose ping is under way."""

    nonce: int
    nbytes: int
    began: float


class Bandwidth:
    """Of one direction of one link. Times are seconds on any clock that only goes forward."""

    def __init__(self) -> None:
        self._nbytes = 0
        self._began = 0.0
        self._timed: deque[_Timed] = deque()
        self._drained = float("-inf")
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    @property
    def bytes_s(self) -> float | None:
        """None before the first burst was timed."""
        return max(self._samples, default=None)

    @property
    def wants_ping(self) -> bool:
        """Enough was written behind the last timed ping for another, to be sent at once."""
        return self._nbytes >= BURST_BYTES_MIN and len(self._timed) < TIMED_MAX

    def wrote(self, nbytes: int, began: float, *, idle_before: bool) -> None:
        """So many bytes were written since `began`; `idle_before` when there was nothing to write until then."""
        if idle_before and self._nbytes < BURST_BYTES_MIN:
            self._nbytes = 0  # a trickle, not a burst
        if not self._nbytes:
            self._began = began
        self._nbytes += nbytes

    def pinged(self, nonce: int) -> None:
        """A ping went out behind what was written, because `wants_ping`."""
        self._timed.append(_Timed(nonce, self._nbytes, self._began))
        self._nbytes = 0

    def ponged(self, nonce: int, now: float, rtt_s: float | None) -> bool:
        """The answer to a ping came; `rtt_s` is the round trip of a quiet link. True when it was one of ours."""
        answered: list[_Timed] = []
        while self._timed and self._timed[0].nonce <= nonce:
            answered.append(self._timed.popleft())
        if not answered or answered[-1].nonce != nonce:
            return False  # the answer to a later ping stands for earlier ones, but does not tell when those came
        if rtt_s is not None:
            # Bytes that were written while earlier ones were still under way have only begun to arrive with the
            # last of those; others after the way there, and the answer had the way back.
            took_s = now - max(answered[0].began + rtt_s, self._drained)
            nbytes = sum(timed.nbytes for timed in answered)
            self._samples.append(nbytes / max(took_s, RTT_SHARE_MIN * rtt_s, TRANSFER_S_MIN))
        self._drained = now
        return True
