"""What processes hold in memory while they serve, and after a long prompt."""

from functools import partial

import psutil

from p2pgrid.bench.lineup import in_turn, open_lineup, prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.systems import System
from p2pgrid.errors import LocalFault

PROMPT_TOKENS = 1024
ANSWER_TOKENS = 4
BASELINES = ("one_process", "llama_cpp")


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    bench.note("rss_bytes and pss_bytes are those of a system's largest process, pss_all_bytes those of all its nodes")
    async with open_lineup(bench, BASELINES) as systems:
        for system in systems:
            await bench.sample(system.name, 0, partial(_read, system, "_idle"))
        for pair in range(-1, bench.options.repeat):
            bench.progress(pair + 1, bench.options.repeat + 1)
            for system in in_turn(systems, pair):
                await bench.sample(system.name, pair, partial(_ask, system, maker.prompt(PROMPT_TOKENS, pair)))


async def _ask(system: System, prompt: tuple[int, ...]) -> Figures:
    await system.ask(prompt, ANSWER_TOKENS)
    return await _read(system, "")


async def _read(system: System, when: str) -> Figures:
    try:
        held = [psutil.Process(pid).memory_full_info() for pid in system.pids()]
    except psutil.Error as error:
        raise LocalFault(f"a process of {system.name} ended while its memory was read: {error}") from error
    # Only Linux tells shares of what several processes use; elsewhere what is theirs alone comes closest.
    shares = [getattr(info, "pss", info.uss) for info in held]
    return {
        f"rss{when}_bytes": (float(max(info.rss for info in held)), "bytes"),
        f"pss{when}_bytes": (float(max(shares)), "bytes"),
        f"pss_all{when}_bytes": (float(sum(shares)), "bytes"),
    }


SCENARIO = Named("memory", "memory of each process, before and after a prompt of 1024 tokens", run)
