"""How quickly prompts are read: the time to the first token of answers that have only one."""

from functools import partial

from p2pgrid.bench.ceilings import limit_prefill
from p2pgrid.bench.lineup import PromptMaker, in_turn, open_lineup, rouse
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.systems import System
from p2pgrid.node.wiring import describe_model, model_store

LENGTHS = (128, 512, 2048)
BASELINES = ("one_process", "llama_cpp")


async def run(bench: Bench) -> None:
    description = await describe_model(model_store(), bench.options.model)
    maker = PromptMaker(description.manifest.vocab)
    lengths = [length for length in LENGTHS if length < description.manifest.context]
    reached: dict[str, dict[str, list[float]]] = {_metric(length): {} for length in lengths}
    async with open_lineup(bench, BASELINES) as systems:
        for system in systems:  # a longer prompt would warm nothing that the shortest does not
            await bench.sample(system.name, -1, partial(_ask, system, maker.prompt(lengths[0], -1), []))
        total, done = len(systems) * len(lengths) * bench.options.repeat, 0
        for pair in range(bench.options.repeat):
            for length in lengths:
                for system in in_turn(systems, pair):
                    bench.progress(done, total)
                    last: list[float] = []
                    ask = partial(_ask, system, maker.prompt(length, pair), last)
                    await rouse(system, maker, pair)
                    await bench.sample(system.name, pair, ask)
                    reached[_metric(length)].setdefault(system.name, []).append(last[-1])
                    done += 1
    await limit_prefill(bench, description.manifest, reached)


def _metric(length: int) -> str:
    return f"prefill_tokens_per_s@{length}"


async def _ask(system: System, prompt: tuple[int, ...], rates: list[float]) -> Figures:
    timed = await system.ask(prompt, 1)
    rates.append(len(prompt) / timed.ttft_s)
    return {_metric(len(prompt)): (rates[-1], "tokens/s"), f"ttft_s@{len(prompt)}": (timed.ttft_s, "s")}


SCENARIO = Named("prefill", "tokens a second of reading prompts of 128, 512 and 2048 tokens", run)
