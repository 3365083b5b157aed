"""`p2pgrid doctor`: is this machine fit, and if not, what to do."""

from collections.abc import Callable
from typing import Annotated

import msgspec
from cyclopts import Parameter

from p2pgrid.checkup import machine, network
from p2pgrid.checkup.finding import Finding, worst
from p2pgrid.cli.console import print_json, progress_bar, stdout
from p2pgrid.cli.options import Bootstrap, Json, Listen
from p2pgrid.cli.running import run_async
from p2pgrid.errors import P2pgridError
from p2pgrid.node.wiring import default_bootstrap, known_models, listen_for, model_store
from p2pgrid.storage.paths import data_dir

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    *,
    bootstrap: Bootstrap = None,
    listen: Listen = None,
    quick: Annotated[bool, Parameter(negative=(), help="Do not read the weights of models to check them.")] = False,
    json: Json = False,
) -> int:
    """Check this machine and its network: versions, processor, memory, disk, models, port, address, peers, clock.

    Each line has a verdict, and a remedy where one is needed. With bootstrap peers it also asks them, and compares the
    clock with those of nodes. Ends with status 1 when there is a problem.

    Example: p2pgrid doctor --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…
    """
    findings: list[Finding] = []

    def found(*more: Finding) -> None:
        findings.extend(more)
        if not json:
            for finding in more:
                _show(finding)

    _machine(found, quick)
    peers = bootstrap or default_bootstrap()
    found(*network.listening(listen or [listen_for(peers)]))
    run_async(lambda: _network(found, peers))
    verdict = worst(findings)
    if json:
        print_json({"verdict": verdict, "findings": [msgspec.to_builtins(finding) for finding in findings]})
    return 1 if verdict == "problem" else 0


def _machine(found: Callable[..., None], quick: bool) -> None:
    store = model_store()
    found(machine.libraries(), machine.own_processor(), machine.own_memory(store), machine.disk(data_dir()))
    found(machine.open_files())
    if not quick:
        with progress_bar("reading the models", in_bytes=True) as advance:
            checked = list(machine.models(store, advance))
        found(*checked)


async def _network(found: Callable[..., None], peers: list[str]) -> None:
    if not peers:
        remedy = "name one with --bootstrap ADDRESS, or start one: p2pgrid bootstrap"
        found(Finding("bootstrap peer", "warning", "none is known: only the local network is searched", remedy))
        return
    asked = [await network.bootstrap_peer(peer) for peer in peers]
    found(*asked)
    alive = [peer for peer, finding in zip(peers, asked, strict=True) if finding.verdict == "ok"]
    if alive:
        try:
            found(await network.clocks(alive, sorted(known_models(model_store()))))
        except P2pgridError as error:
            found(Finding("clock", "warning", f"not compared: {error}", "try again"))


def _show(finding: Finding) -> None:
    stdout.print(f"{finding.verdict:<8}", style=STYLES[finding.verdict], end="", markup=False)
    stdout.print(f"{finding.about}: {finding.says}", markup=False, soft_wrap=True)
    if finding.remedy:
        stdout.print(f"         → {finding.remedy}", markup=False, soft_wrap=True)
