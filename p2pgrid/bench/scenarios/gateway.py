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
    taken: dict[tuple[str, str], list[float]] = {}
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
                    latest: dict[str, float] = {}
                    ask = partial(_ask, system, maker.prompt(PROMPT_TOKENS, pair), tokens, latest)
                    await bench.sample(system.name, pair, ask)
                    for metric, value_s in latest.items() if pair >= 0 else ():
                        taken.setdefault((system.name, metric), []).append(value_s)
    for metric in (TTFT, GAP):
        with_s, without_s = (statistics.median(taken[name, metric]) for name in ("gateway", "swarm"))
        beyond_s = with_s - (1 + SHARE_MAX) * without_s
        bench.keep("gateway", f"beyond_5_percent_{metric}", "s", [beyond_s])
        bench.require(f"beyond_5_percent_{metric}", "gateway", at_most=BEYOND_S_MAX)


async def _ask(system: System, prompt: tuple[int, ...], tokens: int, latest: dict[str, float]) -> Figures:
    """What is measured anew takes the place of what it was in `latest`."""
    timed = await system.ask(prompt, tokens)
    latest |= {TTFT: timed.ttft_s, GAP: 1 / timed.decode_tokens_per_s}
    return {metric: (value_s, "s") for metric, value_s in latest.items()}


SCENARIO = Named("gateway", "what HTTP adds to the first token and to each one after it", run, Options(repeat=15))
