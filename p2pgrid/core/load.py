"""What a stage has been doing lately: how busy it is, and how many tokens it gives."""

import math

WINDOW_S = 10.0
"""What is longer ago counts for less than a third, by and by for nothing."""


class Load:
    """Sums that fade with time. `now_s` is seconds on any clock that only goes forward."""

    def __init__(self, now_s: float) -> None:
        self.token_at_s: float | None = None
        """When a token was last sampled here."""
        self._at_s = now_s
        self._busy_s = 0.0
        self._batches = 0.0
        self._tokens = 0.0

    def ran(self, tokens: int, took_s: float, now_s: float) -> None:
        """A batch was computed: so many decode steps (0 for a prefill step), in so many seconds."""
        self._fade(now_s)
        self._busy_s += took_s
        self._batches += 1
        self._tokens += tokens

    def sampled(self, now_s: float) -> None:
        self.token_at_s = now_s

    def tokens_per_s(self, now_s: float) -> float:
        """Decode steps a second."""
        self._fade(now_s)
        return self._tokens / WINDOW_S

    def queue_ms(self, now_s: float) -> float:
        """What a step waits: a batch, as likely as one runs when it comes."""
        self._fade(now_s)
        if self._batches < 1e-6:
            return 0.0
        return min(self._busy_s / WINDOW_S, 1.0) * 1000 * self._busy_s / self._batches

    def _fade(self, now_s: float) -> None:
        kept = math.exp((self._at_s - now_s) / WINDOW_S)
        self._at_s = now_s
        self._busy_s *= kept
        self._batches *= kept
        self._tokens *= kept
