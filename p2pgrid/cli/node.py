"""`p2pgrid node`: serve a span of a model's layers."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from p2pgrid.cli.console import print_json, progress_bar, say
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import (
    DEFAULT_MODEL,
    Announce,
    Bootstrap,
    Ephemeral,
    GatewayAt,
    Json,
    Listen,
    Model,
    StateFile,
    UntilStdinCloses,
)
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.cli.values import parse_layers, parse_size
from p2pgrid.core.owner_policy import GONE_S, OwnerTerms
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.json_schema import JsonGrammars
from p2pgrid.engine.stage import Stage
from p2pgrid.engine.turns import open_turns
from p2pgrid.errors import BadInput
from p2pgrid.ids import PeerId, Span
from p2pgrid.node.control import obey
from p2pgrid.node.node import DRAIN_S_MAX, Node, Phase, Serving
from p2pgrid.node.peer import Peer
from p2pgrid.node.state_file import own_state, write_json
from p2pgrid.node.wiring import (
    build_stage,
    describe_model,
    fit_memory,
    listen_for,
    model_store,
    open_node_network,
    own_identity,
    public_blobs,
)
from p2pgrid.services.blobs import BlobServer
from p2pgrid.services.owner_watch import OtherPrograms, OwnerWatch
from p2pgrid.settings import StageSettings
from p2pgrid.storage.models import ModelStore
from p2pgrid.storage.paths import control_dir
from p2pgrid.trace import open_trace


def node(
    *,
    model: Model = DEFAULT_MODEL,
    bootstrap: Bootstrap = None,
    layers: Annotated[str, Parameter(help="START:STOP, or auto: take what the swarm lacks most.")] = "auto",
    span_max: Annotated[int | None, Parameter(help="With auto: take at most so many layers.")] = None,
    listen: Listen = None,
    announce: Announce = None,
    memory: Annotated[str | None, Parameter(help="At most this, like 2GiB. Default: half of what is free.")] = None,
    kv_positions: Annotated[
        int, Parameter(help="Most token positions that all sessions together may hold.")
    ] = StageSettings().kv_positions,
    threads: Annotated[int, Parameter(help="Threads for one step; 0 = one a core.")] = 0,
    yield_above: Annotated[
        float | None,
        Parameter(help="Be away while other programs use more than so many percent of the machine. Default: never."),
    ] = None,
    back_after: Annotated[float, Parameter(help="Seconds for which they must be quiet before it comes back.")] = GONE_S,
    turns: Annotated[
        Path | None, Parameter(help="Compute in turns with the nodes of this machine that name the same folder.")
    ] = None,
    trace: Annotated[Path | None, Parameter(help="Write down when each step came, ran and left (JSON lines).")] = None,
    gateway: GatewayAt = None,
    ephemeral: Ephemeral = False,
    state: StateFile = None,
    until_stdin_closes: UntilStdinCloses = False,
    json: Json = False,
) -> None:
    """Serve a range of a model's layers to the network, until Ctrl-C.

    With --yield-above its owner comes first: when other programs are busy it hands its sessions over and frees its
    memory, and it comes back when they were quiet, used less than half of that, for long enough.

    Example: p2pgrid node --model smollm2-135m-instruct --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…

    Example: p2pgrid node --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo… --yield-above 25
    """
    span = parse_layers(layers)
    memory_bytes = None if memory is None else parse_size(memory)
    if span_max is not None and span_max < 1:
        raise BadInput(f"--span-max {span_max}: a node takes at least one layer")
    if kv_positions < 1 or threads < 0:
        raise BadInput("--kv-positions takes 1 or more, --threads 0 (one a core) or more")
    owner_watch = _owner_watch(yield_above, back_after)
    open_gateway = _gateway_opener(gateway)
    wanted = StageSettings(kv_positions=kv_positions, threads=threads)

    async def main() -> None:
        store = model_store()
        description = await describe_model(store, model)
        most, settings_for = fit_memory(description.manifest, memory_bytes, span, span_max, wanted)
        serving = Serving(description.id, model, description.manifest.layers, span, most)

        async def make_stage(chosen: Span) -> Stage:
            with progress_bar(f"loading layers {chosen}") as advance:
                return await build_stage(store, description, chosen, settings_for(chosen), advance)

        peers = joining(bootstrap)
        with own_identity("node", ephemeral=ephemeral) as identity, open_trace(trace) as tracer:
            listening = listen or [listen_for(peers)]
            network = open_node_network(peers, identity, listening, announce=announce or (), tracer=tracer)
            async with network as peer, open_gateway(peer, store) as url:
                BlobServer(peer.transport, public_blobs(description))
                on_phase = partial(_tell, peer, model, state, json, url)
                with open_turns(turns) as own_turns:
                    grammars = JsonGrammars(description.tokenizer, LaneExecutor())
                    node = Node(peer, serving, make_stage, LaneExecutor(own_turns), on_phase, grammars, owner_watch)
                    await _live(node, peer.transport.peer, until_stdin_closes)

    run_async(main)


def _owner_watch(percent: float | None, back_after_s: float) -> OwnerWatch | None:
    """None without a percentage: then nobody watches. Raises BadInput."""
    if back_after_s < 0:
        raise BadInput(f"--back-after {back_after_s:g}: give 0 seconds or more")
    if percent is None:
        return None
    if not 0 < percent <= 100:
        raise BadInput(f"--yield-above {percent:g}: give more than 0 and up to 100 percent of the whole machine")
    return OwnerWatch(OwnerTerms(percent / 100, gone_s=back_after_s), OtherPrograms().share)


def _gateway_opener(address: str | None) -> Callable[[Peer, ModelStore], AbstractAsyncContextManager[str | None]]:
    """What opens the gateway beside the node and gives its URL. Raises BadInput."""
    if address is None:
        return lambda peer, store: nullcontext(None)
    from p2pgrid.cli.gateways import gateway_beside, plan_gateway  # whoever wants none saves the memory

    plan = plan_gateway(address, "--gateway")
    return lambda peer, store: gateway_beside(plan, peer, store)


def _tell(
    peer: Peer, model: str, state: Path | None, json: bool, url: str | None, phase: Phase, span: Span | None
) -> None:
    """Where the node stands: into its state file, and what people want to know of it onto the terminal."""
    transport = peer.transport
    layers = None if span is None else (span.start, span.stop)
    now = own_state(transport.peer, transport.addresses, phase, layers, url)
    if state is not None:
        write_json(state, now)
    if json and phase == "serving":
        print_json(now)
    match phase:
        case "serving":
            say(f"serving layers {span} of {model} as {transport.peer} on {transport.addresses[0].split('/p2p/')[0]}")
        case "moving":
            say(f"other layers need this node more: leaving {span} when its sessions have ended")
        case "draining":
            say("leaving: no new sessions; those that run are handed over, or ended")
        case "away":
            say("away: other programs need the machine; back when they are quiet")
        case "left":
            say("left")
        case _:
            pass


async def _live(node: Node, own: PeerId, until_stdin_closes: bool) -> None:
    stop = trio.Event()

    def leave(within_s: float) -> None:
        node.leave_within(within_s)
        stop.set()

    async def watch() -> None:
        await until_told_to_stop(until_stdin_closes=until_stdin_closes)
        leave(DRAIN_S_MAX)

    async with trio.open_nursery() as tasks:
        await tasks.start(obey, control_dir(), own, leave, lambda: node.sessions_open)
        tasks.start_soon(watch)
        await node.run(stop)
        tasks.cancel_scope.cancel()
