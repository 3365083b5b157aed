"""`p2pgrid swarm`: a whole network on this machine, as real processes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import Parameter

from p2pgrid.cli.answers import answer_document, summary
from p2pgrid.cli.console import print_json, progress_bar, say
from p2pgrid.cli.gateways import plan_gateway
from p2pgrid.cli.generate import sampling_of
from p2pgrid.cli.options import DEFAULT_MODEL, Exact, GatewayAt, Json, Model, Wire
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.errors import BadInput
from p2pgrid.node.answer import Answer, Piece
from p2pgrid.node.client import ModelDescription, wait_for_route
from p2pgrid.node.request import Asker, Request
from p2pgrid.node.state_file import ProcessState, write_json
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.swarm.local_swarm import LISTEN, LocalSwarm, open_local_swarm

NODES_MAX = 64


def swarm(
    *,
    nodes: Annotated[int, Parameter(help="How many node processes.")] = 3,
    model: Model = DEFAULT_MODEL,
    prompt: Annotated[str | None, Parameter(help="Ask this, show the answer, and end.")] = None,
    raw: Annotated[bool, Parameter(negative=(), help="Give the prompt as it stands, without chat template.")] = False,
    max_tokens: int = 256,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest token.")] = 0.0,
    top_p: float = 1.0,
    top_k: Annotated[int, Parameter(help="0 = all.")] = 0,
    seed: int = 0,
    stop: Annotated[list[str] | None, Parameter(negative=(), help="End before this text; several are fine.")] = None,
    exact: Exact = False,
    wire: Wire = "fp32",
    keep: Annotated[bool, Parameter(negative=(), help="Leave the swarm up until Ctrl-C.")] = False,
    gateway: GatewayAt = None,
    state: Annotated[Path | None, Parameter(help="Keep a JSON file with the processes, addresses and layers.")] = None,
    json: Json = False,
) -> None:
    """Start a bootstrap peer and several nodes on this machine, each with a part of the layers, and ask them.

    The processes know only the bootstrap's address; all of them end with this command.

    Example: p2pgrid swarm --nodes 3 --prompt "Explain gravity in two sentences."
    """
    sampling = sampling_of(temperature, top_p, top_k, seed)
    request = (
        None
        if prompt is None
        else Request(prompt, raw, max_tokens, sampling, tuple(stop or ()), wire=wire, exact=exact)
    )
    if request is None and not keep:
        raise BadInput('nothing to do: give --prompt "…", or --keep to leave the swarm up')

    if gateway is not None:
        plan_gateway(gateway, "--gateway")

    def arguments_of(number: int) -> Sequence[str]:
        """The first node has the gateway."""
        return (*LISTEN, "--gateway", gateway) if gateway is not None and number == 0 else LISTEN

    async def work(told_to_stop: trio.Event) -> None:
        description = await describe_model(model_store(), model)
        layers = description.manifest.layers
        if not 1 <= nodes <= min(NODES_MAX, layers):
            raise BadInput(f"--nodes {nodes}: give 1 to {min(NODES_MAX, layers)} (the model has {layers} layers)")
        asker = Asker(description, StageSettings(), PipelineSettings())
        if request is not None:
            asker.check(request)
        async with open_local_swarm(model, nodes, -(-layers // nodes), arguments_of) as running:
            answer = await _first_answer(running, description, asker, request, state, quiet=json)
            if json and (answer is not None or keep):
                print_json(_document(running, answer))
            elif answer is not None:
                say(summary(answer))
            if keep:
                say("the swarm is up; Ctrl-C ends it. Ask it from another terminal:")
                say(f'  p2pgrid generate --bootstrap {running.bootstrap_addresses[0]} --model {model} "…"')
                for url in filter(None, (node.gateway for node in running.nodes())):
                    say(f"or, as a client of OpenAI's, at {url}/v1")
                told_to_stop.set()
                await _keep_current(running, state)

    run_async(lambda: _until_interrupted(work))


async def _until_interrupted(work: Any) -> None:
    """Run `work(kept)`; a signal ends it: as an interrupt before `kept` is set, as the wished end after it."""
    kept = trio.Event()
    async with trio.open_nursery() as tasks:

        async def watch() -> None:
            await until_told_to_stop(until_stdin_closes=False)
            if kept.is_set():
                tasks.cancel_scope.cancel()
            else:
                raise KeyboardInterrupt

        tasks.start_soon(watch)
        await work(kept)
        tasks.cancel_scope.cancel()


async def _first_answer(
    running: LocalSwarm,
    description: ModelDescription,
    asker: Asker,
    request: Request | None,
    state: Path | None,
    *,
    quiet: bool,
) -> Answer | None:
    """Wait until the model is served, say so, and answer the request, as a client that holds no weights."""

    def show(piece: Piece) -> None:
        if not quiet:
            sys.stdout.write(piece.text)
            sys.stdout.flush()

    with progress_bar("nodes find each other and load their layers"):
        await running.wait_serving()
    async with open_network(running.bootstrap_addresses) as peer:
        await wait_for_route(peer, description.id, description.manifest.layers)
        if state is not None:
            write_json(state, _state(running, running.nodes()))
        for node in running.nodes():
            say(f"  process {node.pid}  {node.peer_id}  layers {_span(node)}")
        if request is None:
            return None
        answer = await asker.over_swarm(peer, request, show)
    if not quiet:
        sys.stdout.write("\n")
    return answer


async def _keep_current(running: LocalSwarm, state: Path | None) -> None:
    nodes = running.nodes()
    while True:
        nodes = await running.wait_changed(nodes)
        if state is not None:
            write_json(state, _state(running, nodes))
        say(f"{len(nodes)} nodes: " + ", ".join(f"{node.peer_id[-6:]} {node.phase} {_span(node)}" for node in nodes))


def _span(node: ProcessState) -> str:
    return "-" if node.layers is None else f"{node.layers[0]}:{node.layers[1]}"


def _state(running: LocalSwarm, nodes: list[ProcessState]) -> dict[str, Any]:
    return {"bootstrap": running.bootstrap_addresses, "nodes": nodes}


def _document(running: LocalSwarm, answer: Answer | None) -> dict[str, Any]:
    return {**({} if answer is None else answer_document(answer)), **_state(running, running.nodes())}
