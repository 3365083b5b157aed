"""A page for people about benchmark documents: Markdown with tables, and pictures beside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from p2pgrid.bench import plots, step_parts
from p2pgrid.bench.document import Document, Environment, Limit, Ratio, Row, Target
from p2pgrid.bench.plots import number, scaled
from p2pgrid.errors import BadInput, LocalFault

REPORT_NAME = "report.md"
FILE_BYTES_MAX = 64 * 1024 * 1024
GIB = 2**30


def read_documents(path: Path) -> list[Document]:
    """The documents of a file: one, or a list of them. Raises BadInput, saying what is wrong with the file."""
    again = "make one with: p2pgrid bench all --json FILE"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise BadInput(f"{path} has more than {FILE_BYTES_MAX:,} bytes: no benchmark writes so much; {again}")
        found = msgspec.json.decode(data, type=Document | list[Document])
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}; {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} holds no documents of a benchmark: {error}; {again}") from error
    documents = [found] if isinstance(found, Document) else found
    if not documents:
        raise BadInput(f"{path} holds an empty list of documents; {again}")
    return documents


def write_report(files: Sequence[Path], out: Path) -> Path:
    """Write `report.md` and its pictures into the directory `out`, which is made; the path of the page.

    The pictures need matplotlib; without it the page says how to get it. Raises BadInput for a file that is no
    document, LocalFault when `out` cannot be written.
    """
    if not files:
        raise BadInput("no files to report on: give those that p2pgrid bench … --json wrote")
    documents = [document for path in files for document in read_documents(path)]
    page = out / REPORT_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = _draw_all(documents, out)
        page.write_text("\n".join(_page(documents, pictures)) + "\n", encoding="utf-8")
    except OSError as error:
        raise LocalFault(
            f"cannot write {page}: {error.strerror or error}; give another directory with --out"
        ) from error
    return page


def _draw_all(documents: Sequence[Document], out: Path) -> list[str]:
    """The names of the pictures' files, one a document, empty where there is none."""
    names: list[str] = []
    for document in documents:
        # Only scenarios that have pictures: what a document calls itself never becomes a path.
        name = f"{document.scenario}.png" if document.scenario in plots.PICTURES else ""
        for again in range(2, len(documents) + 1):
            if name not in names:
                break
            name = f"{document.scenario}-{again}.png"
        drawn = bool(name) and plots.available() and plots.draw(document, out / name)
        names.append(name if drawn else "")
    return names


def _page(documents: Sequence[Document], pictures: Sequence[str]) -> Iterable[str]:
    yield "# Benchmarks"
    yield ""
    yield "Figures of one machine hold for that machine; the ratios are what to compare, since the two systems of each"
    yield "were measured in turn within one run."
    if not plots.available():
        yield ""
        yield "There are no pictures here, since matplotlib is not installed: `pip install p2pgrid[bench]`."
    places = list(dict.fromkeys(map(_place, (document.environment for document in documents))))
    for i, place in enumerate(places):
        yield from ("", f"## Machine{f' {i + 1}' if len(places) > 1 else ''}", "", *place)
    for document, picture in zip(documents, pictures, strict=True):
        where = f", machine {places.index(_place(document.environment)) + 1}" if len(places) > 1 else ""
        yield from ("", f"## {_plain(document.scenario)}{where}", "")
        yield from _scenario(document, picture)


def _place(environment: Environment) -> tuple[str, ...]:
    """What documents of one run have in common, as a list."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(environment.versions.items()))
    memory = f"{environment.memory_bytes / GIB:.1f} GiB of memory"
    return (
        f"- {_plain(environment.cpu)}, {environment.cores} cores, {memory}",
        f"- {_plain(environment.system)}, Python {_plain(environment.python)}",
        f"- {_plain(versions) or 'no versions known'}",
        f"- commit {_plain(environment.commit)}",
        f"- model {_plain(environment.model)}",
    )


def _scenario(document: Document, picture: str) -> Iterable[str]:
    environment = document.environment
    quick = ", quick (fewer repeats, shorter answers)" if document.quick else ""
    yield f"Measured with `--nodes {document.nodes}`{quick}."
    yield f"Started {_plain(environment.started_at)} by {_code(environment.command)}."
    yield f"Other processes took at most {environment.foreign_cpu_share_max:.0%} of the machine."
    if not document.complete:
        yield ""
        yield "**Not complete**: it was interrupted or failed, and this is what it had by then."
    if picture:
        yield from ("", f"![{_plain(document.scenario)}]({picture})")
    if document.rows:
        yield ""
        yield from _table(
            ("system", "metric", "unit", "median", "min–max", "p99", "n", "thrown out"), map(_row, document.rows)
        )
    else:
        yield from ("", "No figures.")
    if document.ratios:
        yield ""
        yield from _table(("metric", "ratio", "median", "min–max", "pairs"), map(_ratio, document.ratios))
    if document.limits:
        yield ""
        yield from _table(("metric", "system", "limit", "unit", "reached", "what limits"), map(_limit, document.limits))
    if document.targets:
        yield ""
        yield from _table(("metric", "of", "must be", "reached", "met"), map(_target, document.targets))
    if document.scenario in step_parts.SCENARIOS and (parts := step_parts.table(document.rows)):
        yield ""
        yield from _table(*parts)
    if document.notes:
        yield from ("", *(f"- {_plain(note)}" for note in document.notes))


def _row(row: Row) -> tuple[str, ...]:
    factor, unit = scaled(row.unit, (row.max,))
    return (
        row.system,
        row.metric,
        unit,
        number(row.median * factor),
        f"{number(row.min * factor)} – {number(row.max * factor)}",
        "" if row.p99 is None else number(row.p99 * factor),
        str(len(row.samples)),
        str(row.thrown_out),
    )


def _ratio(ratio: Ratio) -> tuple[str, ...]:
    of = f"{ratio.system}: {ratio.what}" if ratio.what else f"{ratio.system} / {ratio.baseline}"
    return ratio.metric, of, f"{ratio.median:.3f}", f"{ratio.min:.3f} – {ratio.max:.3f}", str(len(ratio.samples))


def _limit(limit: Limit) -> tuple[str, ...]:
    factor, unit = scaled(limit.unit, (limit.limit,))
    return limit.metric, limit.system, number(limit.limit * factor), unit, f"{limit.share:.0%}", limit.what


def _target(target: Target) -> tuple[str, ...]:
    over = target.baseline if target.baseline != target.system else ""
    of = f"{target.system} / {over}" if over else target.system
    sign = "≥" if target.must == "at_least" else "≤"
    reached = "" if target.reached is None else number(target.reached)
    return target.metric, of, f"{sign} {number(target.bound)}", reached, "yes" if target.met else "no"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield _line(head)
    yield _line(["---"] * len(head))
    for row in rows:
        yield _line([_plain(cell) for cell in row])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text from a document, in one line and with nothing in it that Markdown or a browser takes for its own."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*|[]$" else letter for letter in escaped)


def _code(text: str) -> str:
    """A command as code; backticks, which would end that, become quotes."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
