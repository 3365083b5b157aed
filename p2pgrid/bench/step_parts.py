"""Where the time of one decode step goes: the traces of all stages, joined along the ring they form."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from p2pgrid.bench.document import Row
from p2pgrid.errors import LocalFault

SCENARIOS = ("trace",)
"""Those whose rows make a table of parts."""
PARTS = {
    "compute_s": "computing",
    "queue_s": "waiting for its turn",
    "codec_s": "packing and unpacking",
    "link_s": "the link's own code",
    "wire_s": "on the way",
}
LEFT = "left_s"
TOKEN = "token_s"

Marks = Mapping[tuple[str, int], float]
"""(event, position) → when, for one session at one stage, in seconds of a clock that all stages share."""


class _Event(msgspec.Struct):
    event: str
    session: str
    position: int
    at_s: float


def read_trace(file: Path) -> dict[str, dict[tuple[str, int], float]]:
    """The marks of each session in a file that `p2pgrid node --trace` wrote. Raises LocalFault."""
    marks: dict[str, dict[tuple[str, int], float]] = {}
    try:
        lines = file.read_bytes().splitlines()
        for event in (msgspec.json.decode(line, type=_Event) for line in lines):
            marks.setdefault(event.session, {})[event.event, event.position] = event.at_s
    except (OSError, msgspec.MsgspecError) as error:
        raise LocalFault(f"cannot read the trace {file.name}: {error}") from error
    return marks


def along_the_route(stages: Sequence[Marks], position: int) -> list[Marks]:
    """The stages in the order in which they computed `position`; those that did not are left out."""
    ran = [marks for marks in stages if ("computed", position) in marks]
    return sorted(ran, key=lambda marks: marks["computed", position])


def parts_of(stages: Sequence[Marks], position: int) -> list[dict[str, float]]:
    """What became of the turn of `position` round the ring, for each stage in seconds, from the reading of its step
    to the reading of what it sent on; empty when a mark is missing.

    A position's token is sampled by the last stage, which sends it to the first one as the step of the next position.
    What was read counts as written by then, even where the writer's return from writing took longer.
    """
    found: list[dict[str, float]] = []
    try:
        for hop, marks in enumerate(stages):
            onward = position + (hop == len(stages) - 1)
            read, decoded, delivered = (marks[event, position] for event in ("read", "decoded", "delivered"))
            started, computed = marks["started", position], marks["computed", position]
            there = stages[(hop + 1) % len(stages)]["read", onward]
            queued, written = marks["queued", onward], min(marks["written", onward], there)
            values = (
                computed - started,
                started - delivered,
                (decoded - read) + (queued - computed),
                (delivered - decoded) + (written - queued),
                there - written,
            )
            found.append(dict(zip(PARTS, values, strict=True)))
    except KeyError:
        return []
    return found


def medians(turns: Sequence[Sequence[Mapping[str, float]]], token_s: float) -> dict[str, float]:
    """Metrics in seconds: `compute_s@0` and so on are a stage's medians over turns, `compute_s` their sum.

    `left_s` is what `token_s`, the measured time of a token, has beyond them. At least one turn.
    """
    figures: dict[str, float] = {}
    for part in PARTS:
        of_hops = [statistics.median(turn[hop][part] for turn in turns) for hop in range(len(turns[0]))]
        figures |= {f"{part}@{hop}": value for hop, value in enumerate(of_hops)}
        figures[part] = sum(of_hops)
    figures[LEFT] = token_s - sum(figures[part] for part in PARTS)
    figures[TOKEN] = token_s
    return figures


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]] | None:
    """Head and lines, in milliseconds: a line a part, a column a stage; None when the rows hold no parts."""
    found = {row.metric: row.median for row in rows}
    if not {TOKEN, LEFT, *PARTS} <= found.keys() or not found[TOKEN]:
        return None
    hops = sum(metric.startswith("compute_s@") for metric in found)
    head = ["where a token's time goes (ms)", *(f"stage {hop}" for hop in range(hops)), "ring", "share"]
    named = {**PARTS, LEFT: "what is left", TOKEN: "a token, as measured"}
    lines = [
        [
            said,
            *(_ms(found.get(f"{part}@{hop}")) for hop in range(hops)),
            _ms(found[part]),
            f"{found[part] / found[TOKEN]:.0%}",
        ]
        for part, said in named.items()
    ]
    return head, lines


def _ms(value_s: float | None) -> str:
    return "" if value_s is None else f"{1000 * value_s:.2f}"
