"""The systems under comparison behind one small port, so that another one is a file.

A prompt is token ids of an exact length; the end of sequence is ignored, so that an answer has the length asked
for; nothing is reused between requests, unless a scenario says so.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Timed:
    """One request, seen by its client."""

    ttft_s: float
    """From the request to its first token."""
    token_times_s: tuple[float, ...]
    """When each token came, from the request on."""
    token_ids: tuple[int, ...]
    cached_tokens: int = 0
    """Of the prompt, not computed again."""
    session: str = ""
    """Of a swarm's request, as traces name it."""

    @property
    def decode_tokens_per_s(self) -> float:
        """`(n - 1) / (t_last - t_first)`."""
        return (len(self.token_times_s) - 1) / (self.token_times_s[-1] - self.token_times_s[0])

    @property
    def inter_token_latencies_s(self) -> tuple[float, ...]:
        return tuple(b - a for a, b in zip(self.token_times_s, self.token_times_s[1:], strict=False))


class System(Protocol):
    """Something that answers. Entered once a scenario, left on every exit."""

    name: str

    async def ask(self, prompt_ids: Sequence[int], max_tokens: int) -> Timed:
        """One greedy answer of exactly `max_tokens`. May be called by several tasks at once."""

    def pids(self) -> list[int]:
        """The processes that do the work, this one included where it computes."""


class OpenSystem(Protocol):
    """Starts a system: `async with open(...) as system`."""

    def __call__(self) -> AbstractAsyncContextManager[System]: ...
