"""Many clients that ask at the same moment: tokens a second of all together, and how evenly they come."""

import statistics
from functools import partial

import trio

from p2pgrid.bench.lineup import PromptMaker, in_turn, open_lineup, prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.stats import largest_but_1_percent
from p2pgrid.bench.systems import System, Timed
from p2pgrid.errors import P2pgridError

CLIENTS = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = 16
ANSWER_TOKENS = 64
QUICK_ANSWER_TOKENS = 24
SWARM = "swarm"
LLAMA_CPP = "llama_cpp"
BASELINES = ("one_process", LLAMA_CPP)
QUICK_SERIAL_CLIENTS_MAX = 8
"""A baseline answers one request after another: with more of them it only takes longer."""
SPEEDUP_MIN = {8: 2.0, 32: 3.0}
OVER_LLAMA_CPP_MIN = {8: 2.5}
WORST_P99_OVER_MEDIAN_MAX = 4.0

Answers = dict[int, Timed]
"""By the number of the client; those that failed are left out."""


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    bench.note("the baselines answer one request after another")
    heard: dict[tuple[str, int], list[Answers]] = {}
    async with open_lineup(bench, BASELINES) as systems:
        _require(bench, [system.name for system in systems])
        for system in systems:  # a whole round of 32 warms nothing that these do not
            await bench.sample(system.name, -1, partial(_ask_together, bench, system, maker, 2, tokens, -1, {}))
        total = len(systems) * len(CLIENTS) * bench.options.repeat
        done = 0
        for pair in range(bench.options.repeat):
            for clients in CLIENTS:
                for system in in_turn(systems, pair):
                    if bench.options.quick and system.name in BASELINES and clients > QUICK_SERIAL_CLIENTS_MAX:
                        continue
                    bench.progress(done, total)
                    answers: Answers = {}
                    ask = partial(_ask_together, bench, system, maker, clients, tokens, pair, answers)
                    await bench.sample(system.name, pair, ask)
                    heard.setdefault((system.name, clients), []).append(answers)
                    done += 1
    for (name, clients), rounds in heard.items():
        _keep_latencies(bench, name, clients, rounds)


def _require(bench: Bench, systems: list[str]) -> None:
    for clients in CLIENTS[1:]:
        metric = f"aggregate_tokens_per_s@{clients}"
        bench.relate(f"speedup@{clients}", SWARM, metric, "aggregate_tokens_per_s@1")
        if clients in SPEEDUP_MIN:
            bench.require(f"speedup@{clients}", SWARM, SWARM, at_least=SPEEDUP_MIN[clients])
        if clients in OVER_LLAMA_CPP_MIN and LLAMA_CPP in systems:
            bench.require(metric, SWARM, LLAMA_CPP, at_least=OVER_LLAMA_CPP_MIN[clients])
    for clients in CLIENTS:
        bench.require(f"worst_p99_over_median@{clients}", SWARM, at_most=WORST_P99_OVER_MEDIAN_MAX)


async def _ask_together(
    bench: Bench, system: System, maker: PromptMaker, clients: int, tokens: int, pair: int, answers: Answers
) -> Figures:
    """All start at a barrier; the wall time ends with the last answer. A request that fails is counted."""
    answers.clear()  # of a round that was thrown out
    barrier = trio.Event()
    prompts = [maker.prompt(PROMPT_TOKENS, 1000 * (pair + 1) + client) for client in range(clients)]

    async def ask(client: int) -> None:
        await barrier.wait()
        try:
            answers[client] = await system.ask(prompts[client], tokens)
        except P2pgridError as error:
            bench.note(f"a request of {clients} at once failed on {system.name}: {error}")

    async with trio.open_nursery() as tasks:
        for client in range(clients):
            tasks.start_soon(ask, client)
        started_s = trio.current_time()
        barrier.set()
    wall_s = trio.current_time() - started_s
    figures: Figures = {
        f"aggregate_tokens_per_s@{clients}": (sum(len(a.token_ids) for a in answers.values()) / wall_s, "tokens/s"),
        f"failed_requests@{clients}": (float(clients - len(answers)), "requests"),
    }
    if answers:
        figures[f"ttft_s@{clients}"] = (statistics.median(a.ttft_s for a in answers.values()), "s")
    return figures


def _keep_latencies(bench: Bench, name: str, clients: int, rounds: list[Answers]) -> None:
    """All waits for a token, and of the client that fared worst over all rounds the p99 over the median of all."""
    by_client: dict[int, list[float]] = {}
    for answers in rounds:
        for client, answer in answers.items():
            by_client.setdefault(client, []).extend(answer.inter_token_latencies_s)
    latencies = [latency_s for each in by_client.values() for latency_s in each]
    if not latencies:
        return
    bench.keep(name, f"inter_token_latency_s@{clients}", "s", latencies)
    if name == SWARM:
        worst_s = max(largest_but_1_percent(each) for each in by_client.values() if each)
        bench.keep(name, f"worst_p99_over_median@{clients}", "times", [worst_s / statistics.median(latencies)])


SCENARIO = Named("concurrency", "tokens a second of 1 to 32 clients that start together", run)
