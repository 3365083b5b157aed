"""Pictures of a benchmark's document, drawn by matplotlib where that is installed (`p2pgrid[bench]`).

A scenario's picture has one panel for each metric that it is about, so that no axis has two units.
"""

import importlib
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from p2pgrid.bench.document import Document, Row
from p2pgrid.errors import LocalFault

DPI = 110
WIDTH_INCHES = 8.0
PANEL_INCHES = 3.4
SMALL_PANEL_INCHES = 2.6
PANELS_MAX = 4
LABELLED_BARS_MAX = 18
NAME_LETTERS_MAX = 28
LINE_LETTERS_MAX = 90
LEGEND_KEY_LETTERS = 8
LEVEL_LETTERS_MAX = 70
"""Names below an axis that have more letters together stand at an angle."""
TICK_GAP_MIN = 0.07
"""Of an axis' length: numbers that are closer would be written over each other."""

# Okabe and Ito's palette, whose colours people with any colour vision can tell apart, without its yellow, which is
# too pale for lines: https://jfly.uni-koeln.de/color/. Markers and hatches say the same without any colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "os^Dv*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
KNOWN_SYSTEMS = ("swarm", "one_process", "star", "llama_cpp")
"""Drawn in the same colours in every picture, whatever else is in it."""


@dataclass(frozen=True)
class Picture:
    """What the picture of a scenario shows."""

    title: str
    metrics: Literal["_per_s", "_s", "_bytes"]
    """How the names of those metrics end."""
    across: str = ""
    """What stands behind a metric's `@`."""
    x: Literal["names", "linear", "log2", "log10"] = "names"
    """`names` gives bars, the others lines over numbers."""
    y: Literal["linear", "log10"] = "linear"
    together: bool = False
    """All metrics in one panel: they are in one unit, and of one size."""
    numbers_apart: bool = False
    """A number behind the `@` belongs to the panel, and only the name behind it goes across."""
    without: str = "all"
    """What stands below bars whose metric says nothing behind the `@`."""


PICTURES = {
    "decode": Picture("Decode", "_per_s"),
    "prefill": Picture("Prefill", "_per_s", "prompt (tokens)"),
    "concurrency": Picture("Concurrency", "_per_s", "clients at once", "log2"),
    "hop": Picture("What a link adds to a step", "_s", "frame", "log10", "log10"),
    "links": Picture("Emulated links", "_per_s", "profile of the links", numbers_apart=True, without="no links"),
    "discovery": Picture("Discovery", "_s", "nodes", "linear"),
    "prefix": Picture("Prompts that begin like an earlier one", "_s", "request"),
    "formats": Picture("Hidden states over 20 Mbit/s", "_s", "prompt (tokens)"),
    "speculation": Picture("Drafts over 100 ms", "_per_s", "prompts"),
    "memory": Picture("Memory", "_bytes", together=True),
}

_SCALES = {
    "share": ((0.0, 100.0, "%"),),
    "s": ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-9, 1e6, "µs")),
    "bytes": ((2.0**30, 2.0**-30, "GiB"), (2.0**20, 2.0**-20, "MiB"), (2.0**10, 2.0**-10, "KiB")),
    "bytes/s": ((1e9, 1e-9, "GB/s"), (1e6, 1e-6, "MB/s")),
}


def scaled(unit: str, values: Iterable[float]) -> tuple[float, str]:
    """By what to multiply `values` in `unit`, and their unit then: times far below a second in milliseconds, say."""
    largest = max(values, default=0.0)
    for at_least, factor, better in _SCALES.get(unit, ()):
        if largest >= at_least:
            return factor, better
    return 1.0, unit


def number(value: float) -> str:
    """Four digits that count, without an exponent where a reader can do without."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def split_metric(metric: str) -> tuple[str, str]:
    """`name@512` as `name` and `512`; without an `@` the second one is empty."""
    name, _, value = metric.partition("@")
    return name, value


HEADROOM = 1.08
"""Above the highest point, so that its marker is whole."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(document: Document, path: Path) -> bool:
    """Write the document's picture to `path`, a PNG; False when it has nothing to show in one.

    Only where `available()`. Raises LocalFault when the file cannot be written.
    """
    picture = PICTURES.get(document.scenario)
    panels = [] if picture is None else _panels(document.rows, picture)
    if picture is None or not panels:
        return False
    inches = (WIDTH_INCHES, (PANEL_INCHES if len(panels) < 3 else SMALL_PANEL_INCHES) * len(panels) + 0.8)
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=inches, dpi=DPI, layout="constrained")
    looks = _looks(row.system for rows in panels for row in rows)
    for axes, rows in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        factor, unit = scaled(rows[0].unit, (row.max for row in rows))
        axes.set_ylabel(_plain(unit))
        axes.set_title(_plain(_parts(rows[0], picture)[0]), loc="left", fontsize=10)
        axes.grid(axis="y" if picture.x == "names" else "both", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        (_bars if picture.x == "names" else _lines)(axes, rows, picture, factor, looks)
    figure.suptitle(_title(document, picture))
    _legend(figure)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise LocalFault(
            f"cannot write {path}: {error.strerror or error}; give another directory with --out"
        ) from error
    return True


def _legend(figure: Any) -> None:
    """One for all panels, in as many columns as the picture is wide enough for."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn.update(zip(labels, handles, strict=True))
    if drawn:
        columns = min(len(drawn), LINE_LETTERS_MAX // (max(map(len, drawn)) + LEGEND_KEY_LETTERS))
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, frameon=False)


@dataclass(frozen=True)
class _Look:
    colour: str
    marker: str
    hatch: str


def _looks(systems: Iterable[str]) -> dict[str, _Look]:
    everyone = dict.fromkeys((*KNOWN_SYSTEMS, *systems))
    return {
        system: _Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], HATCHES[i % len(HATCHES)])
        for i, system in enumerate(everyone)
    }


def _panels(rows: Sequence[Row], picture: Picture) -> list[list[Row]]:
    """The rows of each metric to be shown, and of those only what the axes can show."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        name, value = split_metric(row.metric)
        # A rate also ends in `_s`.
        wanted = name.endswith(picture.metrics) and name.endswith("_per_s") == (picture.metrics == "_per_s")
        x_fits = picture.x == "names" or (value.isdecimal() and (picture.x == "linear" or int(value) > 0))
        y_fits = picture.y == "linear" or row.median > 0
        if wanted and x_fits and y_fits:
            panels.setdefault(_parts(row, picture)[0], []).append(row)
    return list(panels.values())[:PANELS_MAX]


def _title(document: Document, picture: Picture) -> str:
    nodes = "" if picture.across in ("nodes", "frame") else f", {document.nodes} nodes"
    return f"{picture.title}: {_plain(document.environment.model)}{nodes}{'' if document.complete else ' (incomplete)'}"


def _parts(row: Row, picture: Picture) -> tuple[str, str]:
    """The panel that shows it, without the unit, which stands at the axis; and its place along that panel."""
    name, value = split_metric(row.metric)
    called = name.removesuffix(picture.metrics).replace("_", " ")
    if picture.together:
        return "", called
    if picture.numbers_apart:
        values = value.split("@")
        panel = " at ".join((called, *filter(str.isdecimal, values)))
        return panel, "@".join(one for one in values if not one.isdecimal())
    return called, value


def _bars(axes: Any, rows: Sequence[Row], picture: Picture, factor: float, looks: Mapping[str, _Look]) -> None:
    """Groups with one bar a system; where there is one group only, the systems stand below the axis instead."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(_parts(row, picture)[1], []).append(row.system)
    alone = len(groups) == 1
    order = list(looks)
    names = sorted({row.system for row in rows}, key=order.index) if alone else list(groups)
    width = 0.6 if alone else 0.8 / max(map(len, groups.values()))
    for row in rows:
        group = _parts(row, picture)[1]
        beside = sorted(groups[group], key=order.index)
        from_centre = (beside.index(row.system) - (len(beside) - 1) / 2) * width
        at = names.index(row.system) if alone else names.index(group) + from_centre
        look, height = looks[row.system], row.median * factor
        label = None if alone else _plain(row.system)
        axes.bar(at, height, width, color=look.colour, hatch=look.hatch, edgecolor="white", label=label)
        axes.errorbar(at, height, yerr=_whiskers(row, factor), fmt="none", ecolor="#333333", capsize=4)
        if len(rows) <= LABELLED_BARS_MAX:
            above = (at, max(row.max, row.median) * factor)
            axes.annotate(_three_digits(height), above, (0, 4), textcoords="offset points", ha="center", fontsize=9)
    labels = [_plain(name) or picture.without for name in names]
    crowded = sum(map(len, labels)) > LEVEL_LETTERS_MAX
    axes.set_xticks(range(len(names)), labels, rotation=20 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.margins(y=0.15)
    if picture.across and list(groups) != [""]:
        axes.set_xlabel(_plain(f"{picture.across}: {next(iter(groups))}") if alone else picture.across)


def _lines(axes: Any, rows: Sequence[Row], picture: Picture, factor: float, looks: Mapping[str, _Look]) -> None:
    """One line a system, over the numbers behind the metrics' `@`."""
    for system, look in looks.items():
        points = {int(split_metric(row.metric)[1]): row for row in rows if row.system == system}
        if points:
            places = sorted(points)
            whiskers = [_whiskers(points[x], factor) for x in places]
            axes.errorbar(
                places,
                [points[x].median * factor for x in places],
                yerr=([low for (low,), _ in whiskers], [high for _, (high,) in whiskers]),
                color=look.colour,
                marker=look.marker,
                label=_plain(system),
                capsize=4,
            )
    if picture.x != "linear":
        axes.set_xscale("log", base=2 if picture.x == "log2" else 10)
    ticks = _apart({int(split_metric(row.metric)[1]) for row in rows}, logarithmic=picture.x != "linear")
    axes.set_xticks(ticks, [_size(x) if picture.across == "frame" else f"{x:,}" for x in ticks])
    axes.set_xlabel(picture.across)
    axes.minorticks_off()
    if picture.y == "linear":
        axes.set_ylim(0, axes.get_ylim()[1] * HEADROOM)
        return
    axes.set_yscale("log")
    lowest = min(row.min if row.min > 0 else row.median for row in rows) * factor
    highest = max(row.max for row in rows) * factor
    axes.set_ylim(10 ** math.floor(math.log10(lowest) - 0.01), 10 ** math.ceil(math.log10(highest) + 0.01))
    axes.yaxis.set_major_locator(importlib.import_module("matplotlib.ticker").LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: number(y))
    axes.minorticks_off()


def _apart(values: Iterable[int], *, logarithmic: bool) -> list[int]:
    """Those of `values`, smallest first, that can be written below an axis from the smallest to the largest."""
    ordered = sorted(values)
    places = [math.log(value) if logarithmic else float(value) for value in ordered]
    kept: list[int] = []
    for i, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= TICK_GAP_MIN * (places[-1] - places[0]):
            kept.append(i)
    return [ordered[i] for i in kept]


def _size(size_bytes: int) -> str:
    factor, unit = scaled("bytes", (size_bytes,))
    return f"{_three_digits(size_bytes * factor)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _whiskers(row: Row, factor: float) -> tuple[tuple[float], tuple[float]]:
    """How far below and above the median the smallest and the largest sample lie."""
    return (max(0.0, row.median - row.min) * factor,), (max(0.0, row.max - row.median) * factor,)


def _plain(text: str) -> str:
    """Text from a document as a label: one short line, and no formula, which matplotlib sees between dollars."""
    line = " ".join(text.split())
    short = line if len(line) <= NAME_LETTERS_MAX else line[: NAME_LETTERS_MAX - 1] + "…"
    return short.replace("$", r"\$")
