"""`p2pgrid bench`: measure a swarm of real processes on this machine."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from cyclopts import App, Parameter

from p2pgrid.bench.compare import compare as compare_documents
from p2pgrid.bench.document import Document
from p2pgrid.bench.environment import describe_environment
from p2pgrid.bench.profiles import parse_profile
from p2pgrid.bench.report import write_report
from p2pgrid.bench.runner import run_scenario
from p2pgrid.bench.scenario import Named, Options
from p2pgrid.bench.scenarios import ALL
from p2pgrid.cli.bench_tables import show_document
from p2pgrid.cli.console import print_json, progress_bar, say, show
from p2pgrid.cli.options import DEFAULT_MODEL, Model
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.errors import BadInput
from p2pgrid.node.state_file import write_json
from p2pgrid.node.wiring import describe_model, model_store

QUICK_REPEAT = 3
NODES_MAX = 64
REPEAT_MIN = 3
REPEAT_MAX = 1000

app = App(name="bench", help="Measure a swarm of real processes on this machine.")


@dataclass(frozen=True)
class Wish:
    """What the command line says; None where it leaves the choice to each scenario."""

    nodes: int | None
    model: str
    repeat: int | None
    quick: bool
    profile: str

    def options(self, defaults: Options) -> Options:
        repeat = self.repeat if self.repeat is not None else QUICK_REPEAT if self.quick else defaults.repeat
        nodes = defaults.nodes if self.nodes is None else self.nodes
        return Options(nodes, self.model, repeat, self.quick, self.profile)


def measure(scenarios: Sequence[Named], wish: Wish, json: str | None, *, as_list: bool) -> int:
    """Run the scenarios one after another, and show or write their documents, whole or not.

    Returns 1 when one of them failed or was interrupted. Raises BadInput before anything starts.
    """
    file = _file_of(json)
    documents: list[Document] = []

    async def main() -> None:
        await _check(wish)
        environment = describe_environment(wish.model, shlex.join(["p2pgrid", *sys.argv[1:]]))
        stop = trio.Event()
        async with trio.open_nursery() as tasks:

            async def watch() -> None:
                await until_told_to_stop(until_stdin_closes=False)
                stop.set()

            tasks.start_soon(watch)
            for named in scenarios:
                options = wish.options(named.defaults)
                with progress_bar(named.name) as advance:
                    document = await run_scenario(named, options, environment, stop=stop, on_progress=advance)
                documents.append(document)
                if json != "-":
                    show_document(document)
                if file is not None:  # after each, so that nothing is lost by whatever becomes of the others
                    write_json(file, _formatted(documents, as_list=as_list))
                if stop.is_set():
                    break
            tasks.cancel_scope.cancel()

    run_async(main)
    if json == "-":
        print_json(documents if as_list else documents[0])
    unfinished = [f"{one.scenario}: {one.notes[-1]}" for one in documents if not one.complete]
    for line in unfinished:
        say(f"p2pgrid: {line}")
    return 1 if unfinished else 0


async def _check(wish: Wish) -> None:
    layers = (await describe_model(model_store(), wish.model)).manifest.layers
    if wish.nodes is not None and not 1 <= wish.nodes <= min(NODES_MAX, layers):
        raise BadInput(f"--nodes {wish.nodes}: give 1 to {min(NODES_MAX, layers)} (the model has {layers} layers)")
    if wish.repeat is not None and not REPEAT_MIN <= wish.repeat <= REPEAT_MAX:
        raise BadInput(f"--repeat {wish.repeat}: give {REPEAT_MIN} to {REPEAT_MAX}")
    if wish.profile:
        parse_profile(wish.profile)


def _file_of(json: str | None) -> Path | None:
    """Where documents are written, if anywhere; refused now rather than after minutes of measuring."""
    if json is None or json == "-":
        return None
    file = Path(json)
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise BadInput(f"--json {json}: give a file in a directory that exists, or - for standard output")
    return file


def _formatted(documents: list[Document], *, as_list: bool) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.format(msgspec.json.encode(documents if as_list else documents[0])))


def report(
    files: Annotated[list[Path], Parameter(help="JSON files that benchmarks wrote.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Directory for the page and its pictures.")] = Path("benchmark-report"),
) -> None:
    """Make a page with pictures out of what benchmarks wrote.

    Example: p2pgrid bench report decode.json prefill.json --out my-report
    """
    show(str(write_report(files, out)))


def compare(
    old: Path,
    new: Path,
    /,
    *,
    threshold: Annotated[float, Parameter(help="The share of a ratio that may be lost.")] = 0.1,
) -> int:
    """Tell which ratios got worse from one run to a later one; ends with status 1 when any did.

    Example: p2pgrid bench compare before.json after.json --threshold 0.1
    """
    worse = compare_documents(old, new, threshold)
    for line in worse:
        show(line)
    if not worse:
        say(f"nothing got worse by more than {threshold:.0%}")
    return 1 if worse else 0


def _command(name: str, what: str, scenarios: Sequence[Named], *, as_list: bool) -> Callable[..., int]:
    def run(
        *,
        nodes: Annotated[int | None, Parameter(help=f"How many node processes. Default: {Options().nodes}.")] = None,
        model: Model = DEFAULT_MODEL,
        repeat: Annotated[
            int | None, Parameter(help=f"Samples of each kind. Default: {Options().repeat}; quick: {QUICK_REPEAT}.")
        ] = None,
        json: Annotated[
            str | None, Parameter(allow_leading_hyphen=True, help="Write JSON to this file; - prints it on stdout.")
        ] = None,
        quick: Annotated[bool, Parameter(negative=(), help="Fewer samples and shorter answers.")] = False,
        profile: Annotated[str, Parameter(help="Emulated links, for `links` alone; empty: several kinds.")] = "",
    ) -> int:
        return measure(scenarios, Wish(nodes, model, repeat, quick, profile), json, as_list=as_list)

    run.__doc__ = f"{what[0].upper()}{what[1:]}.\n\nExample: p2pgrid bench {name} --quick"
    return run


app.command(report)
app.command(compare)
for _named in ALL:
    app.command(_command(_named.name, _named.what, (_named,), as_list=False), name=_named.name)
app.command(_command("all", "run every scenario, one after another", ALL, as_list=True), name="all")
