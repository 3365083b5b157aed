"""How quickly tokens come, one after another, for a single client.

`cpu_s_per_token` is over all tokens that were computed, those of the prompt too.
"""

from functools import partial

from p2pgrid.bench.ceilings import limit_decode
from p2pgrid.bench.lineup import PromptMaker, in_turn, open_lineup, rouse, tell_differences
from p2pgrid.bench.load import cpu_s
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.systems import System, Timed
from p2pgrid.node.wiring import describe_model, model_store

PROMPT_TOKENS = 64
ANSWER_TOKENS = 128
QUICK_ANSWER_TOKENS = 40
METRIC = "decode_tokens_per_s"


async def run(bench: Bench) -> None:
    description = await describe_model(model_store(), bench.options.model)
    maker = PromptMaker(description.manifest.vocab)
    tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    reached: dict[str, list[float]] = {}
    async with open_lineup(bench) as systems:
        total = len(systems) * (bench.options.repeat + 1)
        done = 0
        for pair in range(-1, bench.options.repeat):
            answers: dict[str, Timed] = {}
            for system in in_turn(systems, pair):
                bench.progress(done, total)
                ask = partial(_ask, system, maker.prompt(PROMPT_TOKENS, pair), tokens, answers)
                await rouse(system, maker, pair)
                await bench.sample(system.name, pair, ask)
                done += 1
                if pair >= 0:
                    timed = answers[system.name]
                    bench.keep(system.name, "inter_token_latency_s", "s", timed.inter_token_latencies_s)
                    reached.setdefault(system.name, []).append(timed.decode_tokens_per_s)
            tell_differences(bench, answers)
    await limit_decode(bench, description.manifest, METRIC, reached)


async def _ask(system: System, prompt: tuple[int, ...], tokens: int, answers: dict[str, Timed]) -> Figures:
    pids = system.pids()
    before_s = cpu_s(pids)
    timed = answers[system.name] = await system.ask(prompt, tokens)
    used_s = cpu_s(pids) - before_s
    return {
        METRIC: (timed.decode_tokens_per_s, "tokens/s"),
        "ttft_s": (timed.ttft_s, "s"),
        "cpu_s_per_token": (used_s / (len(prompt) + tokens), "s"),
    }


SCENARIO = Named("decode", "tokens a second of one answer, against one process, a star and llama.cpp", run)
