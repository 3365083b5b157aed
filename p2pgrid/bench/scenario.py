"""What a scenario is given, and what it must be: an async function over a `Bench`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2pgrid.bench.document import Limit

Advance = Callable[[int, int], None]
"""Report progress: `(done, total)` samples."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    nodes: int = 3
    model: str = "smollm2-135m-instruct"
    repeat: int = 5
    quick: bool = False
    """Fewer repeats (3) and shorter answers, for a look; the figures mean the same."""
    profile: str = ""
    """Of emulated links, for the scenario `links`; empty = several."""


class Bench(Protocol):
    """Collects a scenario's samples. Made by the runner; a scenario that ends early loses none of them."""

    options: Options

    async def sample(
        self, system: str, pair: int, measure: Callable[[], Awaitable[dict[str, tuple[float, str]]]]
    ) -> None:
        """Run `measure` once while watching the machine, and keep its figures: metric → (value, unit).

        Samples of several systems with the same `pair` are compared with each other. When other processes took
        more than 15 % of the machine meanwhile, it is measured anew, a few times at most; what is thrown out is
        counted in the row. Before the first pair, call with `pair = -1` to warm up: not kept.
        """

    def keep(self, system: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        """Figures that were taken otherwise and are not compared pair by pair."""

    def compare(self, system: str, baseline: str) -> None:
        """Have ratios of `system` over `baseline` in the document, for every metric that both have."""

    def relate(self, name: str, system: str, metric: str, over: str) -> None:
        """Have the ratio of two metrics of one system in the document, pair by pair, under a name of its own."""

    def require(
        self,
        metric: str,
        system: str,
        baseline: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Have the document say whether a figure is what it must be. For `baseline` see `Target`; give one bound."""

    def limit(self, limit: Limit) -> None: ...

    def note(self, line: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...


Scenario = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True)
class Named:
    """A scenario in the registry."""

    name: str
    what: str
    run: Scenario
    defaults: Options = field(default_factory=Options)
