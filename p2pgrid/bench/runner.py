"""Runs one scenario and makes its document, also when it fails or is interrupted."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from p2pgrid.bench import environment as environments
from p2pgrid.bench.document import Document, Environment, Limit, Ratio, Target
from p2pgrid.bench.load import Watch, watch_foreign_load
from p2pgrid.bench.scenario import Advance, Named, Options
from p2pgrid.bench.stats import judged, ratio, row
from p2pgrid.errors import P2pgridError

FOREIGN_SHARE_MAX = 0.15
TRIES_MAX = 3
"""How often one sample is measured before it is kept in spite of others being busy."""
RETRIES_PER_REPEAT = 2
"""How many samples a scenario measures anew, for each repeat: a busy machine must not make it endless."""

Figures = dict[str, tuple[float, str]]


@dataclass
class _Series:
    """Samples of one metric of one system."""

    unit: str
    samples: list[float] = field(default_factory=list)
    by_pair: dict[int, float] = field(default_factory=dict)
    thrown_out: int = 0


class Collector:
    """The `Bench` that a scenario is given."""

    def __init__(self, options: Options, watch: Watch, on_progress: Advance) -> None:
        self.options = options
        self.progress = on_progress
        self.cut_short: str | None = None
        """Why the scenario ended before its end."""
        self._watch = watch
        self._series: dict[tuple[str, str], _Series] = {}
        self._compared: list[tuple[str, str]] = []
        self._related: list[tuple[str, str, str, str]] = []
        self._targets: list[Target] = []
        self._limits: list[Limit] = []
        self._notes: list[str] = []
        self._retries_left = RETRIES_PER_REPEAT * options.repeat
        self._foreign_share_max = 0.0
        self._disturbed = 0

    async def sample(self, system: str, pair: int, measure: Callable[[], Awaitable[Figures]]) -> None:
        """See `Bench.sample`."""
        for tries_left in reversed(range(TRIES_MAX)):
            foreign_share = self._watch()
            figures = await measure()
            share = foreign_share()
            if pair < 0:
                return
            disturbed = share > FOREIGN_SHARE_MAX
            if not (disturbed and tries_left and self._retries_left):
                break
            self._retries_left -= 1
            for metric, (_, unit) in figures.items():
                self._series_of(system, metric, unit).thrown_out += 1
        self._disturbed += disturbed
        self._foreign_share_max = max(self._foreign_share_max, share)
        for metric, (value, unit) in figures.items():
            series = self._series_of(system, metric, unit)
            series.samples.append(value)
            series.by_pair[pair] = value

    def keep(self, system: str, metric: str, unit: str, samples: Sequence[float]) -> None:
        self._series_of(system, metric, unit).samples.extend(samples)

    def compare(self, system: str, baseline: str) -> None:
        self._compared.append((system, baseline))

    def relate(self, name: str, system: str, metric: str, over: str) -> None:
        self._related.append((name, system, metric, over))

    def require(
        self,
        metric: str,
        system: str,
        baseline: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        if at_least is not None:
            self._targets.append(Target(metric, system, baseline, "at_least", at_least, None, False))
        if at_most is not None:
            self._targets.append(Target(metric, system, baseline, "at_most", at_most, None, False))

    def limit(self, limit: Limit) -> None:
        self._limits.append(limit)

    def note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def document(self, scenario: str, environment: Environment) -> Document:
        """All that there is by now."""
        notes = list(self._notes)
        if self._disturbed:
            notes.append(
                f"{self._disturbed} sample(s) count although other processes took more than {FOREIGN_SHARE_MAX:.0%} of"
                " the machine: measure again when it is idle"
            )
        if self.cut_short is not None:
            notes.append(self.cut_short)
        rows = [row(s, m, x.unit, x.samples, x.thrown_out) for (s, m), x in self._series.items() if x.samples]
        document = Document(
            format=1,
            scenario=scenario,
            nodes=self.options.nodes,
            quick=self.options.quick,
            complete=self.cut_short is None,
            environment=msgspec.structs.replace(environment, foreign_cpu_share_max=self._foreign_share_max),
            rows=tuple(rows),
            ratios=tuple(self._ratios()),
            limits=tuple(self._limits),
            notes=tuple(notes),
        )
        targets = tuple(judged(target, document) for target in self._targets)
        return msgspec.structs.replace(document, targets=targets)

    def _ratios(self) -> list[Ratio]:
        found = [
            ratio(metric, system, baseline, ours.by_pair, self._series[baseline, metric].by_pair)
            for system, baseline in self._compared
            for (of, metric), ours in self._series.items()
            if of == system and (baseline, metric) in self._series
        ]
        found += [
            ratio(name, system, system, self._pairs(system, metric), self._pairs(system, over), f"{metric} / {over}")
            for name, system, metric, over in self._related
        ]
        return [one for one in found if one is not None]

    def _pairs(self, system: str, metric: str) -> dict[int, float]:
        series = self._series.get((system, metric))
        return {} if series is None else series.by_pair

    def _series_of(self, system: str, metric: str, unit: str) -> _Series:
        return self._series.setdefault((system, metric), _Series(unit))


def _no_progress(done: int, total: int) -> None:
    pass


async def run_scenario(
    named: Named,
    options: Options,
    environment: Environment,
    *,
    stop: trio.Event,
    watch: Watch = watch_foreign_load,
    on_progress: Advance = _no_progress,
) -> Document:
    """Run it until it ends or `stop` is set. Errors of ours end up in the document.

    Where it ended early, the document has the rows until then, is not complete, and its last note says why.
    """
    collector = Collector(options, watch, on_progress)
    started = msgspec.structs.replace(environment, started_at=environments.now())

    async with trio.open_nursery() as tasks:

        async def watch_stop() -> None:
            await stop.wait()
            collector.cut_short = "interrupted"
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch_stop)
        try:
            await named.run(collector)
        except* P2pgridError as group:
            collector.cut_short = f"failed: {_first(group)}"
        tasks.cancel_scope.cancel()
    return collector.document(named.name, started)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
