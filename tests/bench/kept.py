"""A `Bench` that remembers what a scenario says."""

from collections.abc import Awaitable, Callable, Sequence

from p2pgrid.bench.document import Limit
from p2pgrid.bench.scenario import Options


class KeptBench:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: dict[str, list[float]] = {}
        self.required: list[str] = []
        self.notes: list[str] = []

    async def sample(
        self, system: str, pair: int, measure: Callable[[], Awaitable[dict[str, tuple[float, str]]]]
    ) -> None:
        for metric, (value, unit) in (await measure()).items():
            self.keep(system, metric, unit, [value])

    def keep(self, system: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self.rows.setdefault(metric, []).extend(samples)

    def compare(self, system: str, baseline: str) -> None:
        raise AssertionError("there is one system in these scenarios")

    def relate(self, name: str, system: str, metric: str, over: str) -> None:
        raise AssertionError("no figures of these scenarios are held against each other")

    def require(
        self,
        metric: str,
        system: str,
        baseline: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        self.required.append(f"{metric} of {system}")

    def limit(self, limit: Limit) -> None:
        raise AssertionError("the machine sets no limit in these scenarios")

    def note(self, line: str) -> None:
        self.notes.append(line)

    def progress(self, done: int, total: int) -> None:
        assert 0 <= done <= total
