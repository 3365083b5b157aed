"""Which systems a scenario compares, in which order they take their turns, and what they are asked."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from p2pgrid.bench import llama_cpp
from p2pgrid.bench.one_process import open_one_process
from p2pgrid.bench.scenario import Bench
from p2pgrid.bench.swarm_system import open_swarm_system
from p2pgrid.bench.systems import System, Timed
from p2pgrid.node.wiring import describe_model, model_store

T = TypeVar("T")

BASELINES = ("one_process", "star", "llama_cpp")
ROUSE_TOKENS = 64
ROUSE_ANSWER = 4
ORDINARY_FROM = 0.05
"""The share of a vocabulary at its beginning that prompts leave out: special tokens and single bytes are there."""


@asynccontextmanager
async def open_lineup(bench: Bench, baselines: Sequence[str] = BASELINES) -> AsyncIterator[list[System]]:
    """The swarm and those of the baselines that there are, all ready; ratios of the swarm over each are noted down.

    Raises what starting any of them raises.
    """
    model = bench.options.model
    systems: list[System] = []
    async with AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(open_swarm_system(model, bench.options.nodes))
        systems.append(swarm)
        if "one_process" in baselines:
            systems.append(await stack.enter_async_context(open_one_process(model)))
        if "star" in baselines:
            systems.append(swarm.as_star())
        if "llama_cpp" in baselines and llama_cpp_is_here(bench):
            systems.append(await stack.enter_async_context(llama_cpp.open_llama_cpp(model)))
        for system in systems[1:]:
            bench.compare(swarm.name, system.name)
        yield systems


def llama_cpp_is_here(bench: Bench) -> bool:
    """Whether llama.cpp takes part; a note says so when it does not."""
    if not llama_cpp.installed():
        bench.note("llama.cpp is not compared: llama-cpp-python is not installed (pip install 'p2pgrid[peers]')")
    return llama_cpp.installed()


def in_turn(systems: Sequence[T], pair: int) -> list[T]:
    """Another one begins in each pair, so that none gains by its place."""
    first = pair % len(systems)
    return [*systems[first:], *systems[:first]]


async def prompt_maker(bench: Bench) -> "PromptMaker":
    """For the scenario's model. Raises BadInput when it is not on this machine."""
    description = await describe_model(model_store(), bench.options.model)
    return PromptMaker(description.manifest.vocab)


class PromptMaker:
    """Prompts of an exact length: ordinary tokens by chance, the same in every run."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def prompt(self, length: int, salt: int) -> tuple[int, ...]:
        """Token ids `[length]`; another `salt` gives a prompt that has no beginning in common."""
        rng = random.Random(f"{length}/{salt}")
        return tuple(rng.randrange(int(self._vocab * ORDINARY_FROM), self._vocab) for _ in range(length))


async def rouse(system: System, maker: PromptMaker, pair: int) -> None:
    """A short request that does not count, right before one that does.

    While the others were asked this system was idle: its memory is in no cache any more, and some machines take the
    pages of idle processes away. A system of several processes would pay for that several times.
    """
    await system.ask(maker.prompt(ROUSE_TOKENS, -1000 - pair), ROUSE_ANSWER)


def tell_differences(bench: Bench, answers: dict[str, Timed]) -> None:
    """Note when systems with the same arithmetic gave other tokens to the same prompt."""
    ours = {name: answers[name].token_ids for name in ("swarm", "one_process", "star") if name in answers}
    if len(set(ours.values())) > 1:
        bench.note(f"DIFFERENT TOKENS from {', '.join(ours)} for the same prompt: the split must change nothing")
