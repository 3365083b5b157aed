"""Many clients that ask at the same moment: tokens a second of all together."""

import statistics
from functools import partial

import trio

from p2pgrid.bench.lineup import PromptMaker, in_turn, open_lineup, prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.systems import System, Timed
from p2pgrid.errors import P2pgridError

CLIENTS = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = 16
ANSWER_TOKENS = 64
QUICK_ANSWER_TOKENS = 8
BASELINES = ("one_process", "llama_cpp")
QUICK_SERIAL_CLIENTS_MAX = 8
"""A baseline answers one request after another: with more of them it only takes longer."""


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    bench.note("the baselines answer one request after another; a swarm's nodes hold 8 sessions, more clients wait")
    async with open_lineup(bench, BASELINES) as systems:
        for system in systems:  # a whole round of 32 warms nothing that these do not
            await bench.sample(system.name, -1, partial(_ask_together, bench, system, maker, 2, tokens, -1))
        total = len(systems) * len(CLIENTS) * bench.options.repeat
        done = 0
        for pair in range(bench.options.repeat):
            for clients in CLIENTS:
                for system in in_turn(systems, pair):
                    if bench.options.quick and system.name in BASELINES and clients > QUICK_SERIAL_CLIENTS_MAX:
                        continue
                    bench.progress(done, total)
                    ask = partial(_ask_together, bench, system, maker, clients, tokens, pair)
                    await bench.sample(system.name, pair, ask)
                    done += 1


async def _ask_together(
    bench: Bench, system: System, maker: PromptMaker, clients: int, tokens: int, pair: int
) -> Figures:
    """All start at a barrier; the wall time ends with the last answer. A request that fails is counted."""
    barrier = trio.Event()
    answers: list[Timed] = []
    prompts = [maker.prompt(PROMPT_TOKENS, 1000 * (pair + 1) + client) for client in range(clients)]

    async def ask(prompt: tuple[int, ...]) -> None:
        await barrier.wait()
        try:
            answers.append(await system.ask(prompt, tokens))
        except P2pgridError as error:
            bench.note(f"a request of {clients} at once failed on {system.name}: {error}")

    async with trio.open_nursery() as tasks:
        for prompt in prompts:
            tasks.start_soon(ask, prompt)
        started_s = trio.current_time()
        barrier.set()
    wall_s = trio.current_time() - started_s
    figures: Figures = {
        f"aggregate_tokens_per_s@{clients}": (sum(len(a.token_ids) for a in answers) / wall_s, "tokens/s"),
        f"failed_requests@{clients}": (float(clients - len(answers)), "requests"),
    }
    if answers:
        figures[f"ttft_s@{clients}"] = (statistics.median(a.ttft_s for a in answers), "s")
    return figures


SCENARIO = Named("concurrency", "tokens a second of 1 to 32 clients that start together", run)
