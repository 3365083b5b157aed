"""From nothing to the first token: with the weights on disk, with them in memory, and on a system that is up."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import trio

from p2pgrid.bench import llama_cpp
from p2pgrid.bench.lineup import PromptMaker, in_turn, llama_cpp_is_here
from p2pgrid.bench.one_process import open_one_process
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.swarm_system import open_swarm_system
from p2pgrid.bench.systems import System
from p2pgrid.node.wiring import describe_model, model_store

PROMPT_TOKENS = 16
Open = Callable[[], AbstractAsyncContextManager[System]]


async def run(bench: Bench) -> None:
    store = model_store()
    description = await describe_model(store, bench.options.model)
    prompt = PromptMaker(description.manifest.vocab).prompt(PROMPT_TOKENS, 0)
    checkpoint = store.checkpoint(description.id)
    if not hasattr(os, "posix_fadvise"):
        bench.note("cold starts are warm ones here: this system cannot be asked to forget a file")
    lineup = _lineup(bench)
    for name in lineup:
        if name != "swarm":
            bench.compare("swarm", name)
    total, done = 2 * len(lineup) * bench.options.repeat, 0
    # Without a start to warm up: a cold one is what is asked for, and the warm one follows it.
    for pair in range(bench.options.repeat):
        for name in in_turn(list(lineup), pair):
            for cold in (True, False):
                bench.progress(done, total)
                start = partial(_start, lineup[name], prompt, checkpoint if cold else None)
                await bench.sample(name, pair, start)
                done += 1


def _lineup(bench: Bench) -> dict[str, Open]:
    model = bench.options.model
    lineup: dict[str, Open] = {
        "swarm": partial(open_swarm_system, model, bench.options.nodes),
        "one_process": partial(open_one_process, model),
    }
    if llama_cpp_is_here(bench):
        lineup["llama_cpp"] = partial(llama_cpp.open_llama_cpp, model)
    return lineup


async def _start(start: Open, prompt: tuple[int, ...], forget: Path | None) -> Figures:
    """From the start of the first process to the first token; what is slow to end does not count."""
    if forget is not None:
        _forget(forget)
    started_at = trio.current_time()
    async with start() as system:
        opened_s = trio.current_time() - started_at
        first = await system.ask(prompt, 1)
        again = await system.ask(prompt, 1)
    if forget is not None:
        return {"startup_cold_s": (opened_s + first.ttft_s, "s")}
    return {"startup_warm_s": (opened_s + first.ttft_s, "s"), "ttft_s": (again.ttft_s, "s")}


def _forget(file: Path) -> None:
    """Have the kernel drop what it keeps of `file` in memory, where it can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


SCENARIO = Named("startup", "from nothing to the first token, cold and warm", run)
