"""The time to the first token over slow links, for each form in which hidden states can travel."""

from collections.abc import Sequence
from functools import partial

from p2pgrid.bench.conditioned_swarm import open_conditioned_swarm
from p2pgrid.bench.lineup import in_turn, prompt_maker
from p2pgrid.bench.profiles import MBIT, Profile
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.systems import System
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import WireChoice

FORMATS: Sequence[WireChoice] = ("fp32", "fp16", "int8", "auto")
PROFILE = Profile("20mbit", rtt_s=0.02, up_bytes_s=20 * MBIT, down_bytes_s=20 * MBIT)
PROMPT_TOKENS = 512
WARM_UP_TOKENS = 256
"""So much goes over each link first, for `auto` to know what it carries."""


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    for other in FORMATS[1:]:
        bench.compare(other, FORMATS[0])
    async with open_conditioned_swarm(bench.options.model, bench.options.nodes, PROFILE) as swarm:
        systems = [swarm.system.asked_with(name, Terms(wire=name)) for name in FORMATS]
        await bench.sample(FORMATS[0], -1, partial(_ask, systems[0], maker.prompt(WARM_UP_TOKENS, -1)))
        total = len(systems) * bench.options.repeat
        done = 0
        for pair in range(bench.options.repeat):
            for system in in_turn(systems, pair):
                bench.progress(done, total)
                await bench.sample(system.name, pair, partial(_ask, system, maker.prompt(PROMPT_TOKENS, pair)))
                done += 1
    bench.note(f"every node is behind a link of {1000 * PROFILE.rtt_s:g} ms and {PROFILE.up_bytes_s / MBIT:g} Mbit/s")


async def _ask(system: System, prompt: tuple[int, ...]) -> Figures:
    return {f"ttft_s@{PROMPT_TOKENS}": ((await system.ask(prompt, 1)).ttft_s, "s")}


SCENARIO = Named("formats", "time to the first token over 20 Mbit/s, with each form of hidden states", run)
