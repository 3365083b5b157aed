"""`p2pgrid top`: the swarm as it lives."""

import time
from typing import Annotated

import trio
from cyclopts import Parameter
from rich.live import Live

from p2pgrid.cli.console import print_json, progress_bar, stdout
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import Bootstrap, Json
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.cli.top_view import top_view
from p2pgrid.errors import BadInput
from p2pgrid.ids import ModelId
from p2pgrid.node.peer import Peer
from p2pgrid.node.survey import PEERS_MAX, ModelSurvey, ask_around, examine, survey_document, survey_of
from p2pgrid.node.wiring import known_models, model_store, open_network, resolve_model

EVERY_S_MIN = 0.2


def top(
    *,
    bootstrap: Bootstrap = None,
    model: Annotated[str | None, Parameter(help="Only this model. Default: every known one.")] = None,
    every: Annotated[float, Parameter(help="Seconds between two looks at the swarm.")] = 1.0,
    once: Annotated[bool, Parameter(negative=(), help="Look once, print that, and end.")] = False,
    json: Json = False,
) -> None:
    """Watch the swarm: its models, the nodes with their layers, tokens a second, queues, KV use, links; until Ctrl-C.

    With --json, or where there is no terminal, it looks once. Only `status` tells by its exit status whether models
    can be used.

    Example: p2pgrid top --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…
    """
    if every < EVERY_S_MIN:
        raise BadInput(f"--every {every}: give {EVERY_S_MIN} or more seconds")

    async def main() -> None:
        store = model_store()
        names = known_models(store)
        models = [resolve_model(store, model)] if model is not None else sorted(names)
        async with open_network(joining(bootstrap)) as peer:
            with progress_bar("asking the nodes"):
                await ask_around(peer, models)
            if once or json or not stdout.is_terminal:
                found = [await examine(peer, known, names.get(known)) for known in models]
                _print([each for each in found if each.adverts or model is not None], json)
            else:
                await _watch(peer, {known: names.get(known) for known in models}, every)

    run_async(main)


def _print(found: list[ModelSurvey], json: bool) -> None:
    if json:
        print_json({"models": [survey_document(each) for each in found]})
    else:
        stdout.print(top_view(found, f"the swarm at {_clock()}"))


async def _watch(peer: Peer, names: dict[ModelId, str | None], every_s: float) -> None:
    """On a screen of its own, which is gone afterwards; until a signal comes."""
    async with trio.open_nursery() as tasks:

        async def look() -> None:  # a node that hangs holds up this, and not what is shown
            while True:
                for model in names:
                    await peer.discovery.refresh(model, peers_max=PEERS_MAX)
                await trio.sleep(every_s)

        async def show() -> None:
            with Live(screen=True, auto_refresh=False, console=stdout) as screen:
                while True:
                    found = [survey_of(peer, model, name) for model, name in names.items()]
                    shown = [each for each in found if each.adverts]
                    screen.update(top_view(shown, f"the swarm at {_clock()}; Ctrl-C leaves"), refresh=True)
                    await trio.sleep(every_s)

        async def leave(*, task_status: trio.TaskStatus[None]) -> None:
            await until_told_to_stop(until_stdin_closes=False, task_status=task_status)
            tasks.cancel_scope.cancel()

        await tasks.start(leave)  # first: who sees the screen may leave at once
        tasks.start_soon(look)
        tasks.start_soon(show)


def _clock() -> str:
    return time.strftime("%H:%M:%S")
