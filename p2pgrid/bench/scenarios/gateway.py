"""What HTTP costs: the same nodes asked by the client library in this process, and through a gateway in another one."""

import statistics
from functools import partial

from p2pgrid.bench.http_client import open_http_system
from p2pgrid.bench.lineup import PromptMaker, in_turn, rouse
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named, Options
from p2pgrid.bench.swarm_system import open_swarm_system
from p2pgrid.bench.systems import System
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import Sampling

PROMPT_TOKENS = 64
ANSWER_TOKENS = 128
QUICK_ANSWER_TOKENS = 40
TTFT, GAP = "ttft_s", "inter_token_latency_mean_s"
SHARE_MAX, BEYOND_S_MAX = 0.05, 0.003
"""HTTP may add so much of what the library takes, and so many seconds."""


async def run(bench: Bench) -> None:
    tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    taken: dict[str, dict[str, list[float]]] = {}
    async with open_swarm_system(bench.options.model, bench.options.nodes) as plain:
        stops = plain.model.tokenizer.stops
        sampling = Sampling(logit_bias=tuple((token, -100.0) for token in stops))
        library = plain.asked_with("swarm", Terms(sampling=sampling, logprobs=0), reuses=True)
        maker = PromptMaker(plain.model.manifest.vocab)
        bootstrap = plain.local.bootstrap_addresses
        async with open_http_system(bootstrap, bench.options.model, stops) as gateway:
            systems: list[System] = [library, gateway]
            bench.compare(gateway.name, library.name)
            for pair in range(-1, bench.options.repeat):
                for turn, system in enumerate(in_turn(systems, pair)):
                    bench.progress(2 * (pair + 1) + turn, 2 * (bench.options.repeat + 1))
                    await rouse(system, maker, pair)
                    figures = taken.setdefault(system.name, {TTFT: [], GAP: []}) if pair >= 0 else {TTFT: [], GAP: []}
                    ask = partial(_ask, system, maker.prompt(PROMPT_TOKENS, pair), tokens, figures)
                    await bench.sample(system.name, pair, ask)
    for metric in (TTFT, GAP):
        median_s = {name: statistics.median(figures[metric]) for name, figures in taken.items()}
        beyond_s = median_s["gateway"] - (1 + SHARE_MAX) * median_s["swarm"]
        bench.keep("gateway", f"beyond_5_percent_{metric}", "s", [beyond_s])
        bench.require(f"beyond_5_percent_{metric}", "gateway", at_most=BEYOND_S_MAX)


async def _ask(system: System, prompt: tuple[int, ...], tokens: int, figures: dict[str, list[float]]) -> Figures:
    timed = await system.ask(prompt, tokens)
    gap_s = 1 / timed.decode_tokens_per_s
    figures[TTFT].append(timed.ttft_s)
    figures[GAP].append(gap_s)
    return {TTFT: (timed.ttft_s, "s"), GAP: (gap_s, "s")}


SCENARIO = Named("gateway", "what HTTP adds to the first token and to each one after it", run, Options(repeat=15))
