"""What becomes of answers when a node that they run through leaves in order."""

from collections import Counter
from itertools import pairwise

import trio

from p2pgrid.bench.hearing import Heard, equal_share, hear
from p2pgrid.bench.processes import open_crew
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.scenarios.recovery import ANSWER_TOKENS, REPLICAS, Scene, prompt_of, spans_of, start_serving
from p2pgrid.errors import LocalFault
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.control import ask_to_drain
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.storage.paths import control_dir

CLIENTS = 8
AT_SHARE = 0.25
"""Of the tokens of all answers together; then the node with the most of them is told to leave."""
WITHIN_S = 30.0
BEGUN_S_MAX = 60.0
GAP_S_MAX = 0.5
SYSTEM = "swarm"


async def run(bench: Bench) -> None:
    options = bench.options
    description = await describe_model(model_store(), options.model)
    spans = spans_of(description.manifest.layers, options.nodes)
    try:
        async with open_crew() as crew:
            await start_serving(crew, options.model, spans * REPLICAS)
            async with open_network(crew.bootstrap) as client:
                scene = Scene(bench, crew, client, description, spans)
                await wait_for_route(client, description.id, description.manifest.layers)
                calm = await hear(client, description, prompt_of(description), ANSWER_TOKENS)
                if calm.error is not None:
                    raise calm.error
                for round_ in range(options.repeat):
                    bench.progress(round_, options.repeat)
                    await scene.fill_up(round_ % len(spans))
                    await _drain_once(scene, round_ % len(spans), calm)
                bench.progress(options.repeat, options.repeat)
        bench.note(crew.last_note())
    finally:
        bench.require("complete_and_equal", SYSTEM, at_least=1.0)
        bench.require("replayed_positions", SYSTEM, at_most=0.0)
        bench.require("longest_gap_s", SYSTEM, at_most=GAP_S_MAX)
    bench.note(f"{CLIENTS} answers of {ANSWER_TOKENS} tokens at a time; the stages take turns at leaving")


async def _drain_once(scene: Scene, stage: int, calm: Heard) -> None:
    """All clients ask; the node of that stage through which most answers run leaves; what the clients saw is kept."""
    prompt = prompt_of(scene.description)
    answers: dict[int, Heard] = {}
    enough = trio.Event()

    async def ask(client: int) -> None:
        def on_token(heard: Heard) -> None:
            answers[client] = heard
            tokens = sum(len(each.token_ids) for each in answers.values())
            if len(answers) == CLIENTS and tokens >= AT_SHARE * CLIENTS * ANSWER_TOKENS:
                enough.set()

        answers[client] = await hear(scene.client, scene.description, prompt, ANSWER_TOKENS, on_token)

    async with trio.open_nursery() as tasks:
        for client in range(CLIENTS):
            tasks.start_soon(ask, client)
        with trio.move_on_after(BEGUN_S_MAX):
            await enough.wait()
        if not enough.is_set():
            raise LocalFault(f"{CLIENTS} answers did not begin within {BEGUN_S_MAX:.0f} s: is the machine overloaded?")
        ((peer, _),) = Counter(heard.route[stage].peer for heard in answers.values()).most_common(1)
        moved = [client for client, heard in answers.items() if heard.route[stage].peer == peer]
        member = scene.node_of(peer)
        if member is None:
            raise LocalFault(f"the process of {peer} was not found")
        told_s = trio.current_time()
        await ask_to_drain(control_dir(), peer, WITHIN_S, lambda sessions: None)
        await member.process.wait()
        left_s = trio.current_time() - told_s
    bench = scene.bench
    bench.keep(SYSTEM, "complete_and_equal", "share", [is_whole(heard, calm) for heard in answers.values()])
    bench.keep(SYSTEM, "sessions_moved", "sessions", [float(len(moved))])
    bench.keep(SYSTEM, "replayed_positions", "positions", [float(heard.replayed) for heard in answers.values()])
    bench.keep(SYSTEM, "longest_gap_s", "s", [longest_gap_s(answers[client], told_s) for client in moved])
    bench.keep(SYSTEM, "left_s", "s", [left_s])


def is_whole(heard: Heard, calm: Heard) -> float:
    whole = heard.error is None and len(heard.token_ids) == len(calm.token_ids)
    return float(whole and equal_share(heard.token_ids, calm.token_ids) == 1.0)


def longest_gap_s(heard: Heard, since_s: float) -> float:
    times_s = [since_s, *(time_s for time_s in heard.times_s if time_s > since_s)]
    return max((b - a for a, b in pairwise(times_s)), default=0.0)


SCENARIO = Named("drain", "a node leaves in order while eight answers run through it and others", run)
