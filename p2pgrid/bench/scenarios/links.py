"""What becomes of answers over emulated links: every node is behind one."""

from collections.abc import Sequence
from statistics import median

from p2pgrid.bench.conditioned_swarm import ConditionedSwarm, open_conditioned_swarm
from p2pgrid.bench.conditioner_check import verify
from p2pgrid.bench.document import Limit
from p2pgrid.bench.lineup import PromptMaker, prompt_maker
from p2pgrid.bench.one_process import open_one_process
from p2pgrid.bench.profiles import MBIT, PROFILES, Profile, parse_profile
from p2pgrid.bench.scenario import Bench, Named, Options
from p2pgrid.bench.systems import System

QUICK_PROFILES = ("lan", "wan")
PROMPT_TOKENS = 16
PREFILL_TOKENS = 128
ANSWER_TOKENS = 64
QUICK_ANSWER_TOKENS = 16
PREFILL_ANSWER_TOKENS = 2
SWARM = "swarm"
ONE_PROCESS = "one_process"


def profiles_of(options: Options) -> list[Profile]:
    """Those to be measured. Raises BadInput for a profile that is none."""
    if options.profile:
        return [parse_profile(options.profile)]
    return [PROFILES[name] for name in QUICK_PROFILES] if options.quick else list(PROFILES.values())


def decode_limit(profile: Profile, stages: int, compute_s: float) -> float:
    """Tokens/s at best: a token goes once round the ring of `stages`, and is computed once, in `compute_s`."""
    round_s = stages * profile.one_way_s if stages > 1 else 0.0
    return 1 / (round_s + compute_s)


async def run(bench: Bench) -> None:
    """One-process first, for the limit; then one swarm a profile. Every profile is read before anything starts."""
    profiles = profiles_of(bench.options)
    prompts = await prompt_maker(bench)
    pairs = bench.options.repeat
    total = (len(profiles) + 1) * pairs
    asking = _Asking(bench, prompts)
    async with open_one_process(bench.options.model) as alone:
        for pair in range(-1, pairs):
            await asking.sample(alone, ONE_PROCESS, pair, "")
            bench.progress(pair + 1, total)
    compute_s = 1 / asking.decode_median(ONE_PROCESS, "")
    for number, profile in enumerate(profiles, 1):
        await _tell_check(bench, profile)
        async with open_conditioned_swarm(bench.options.model, bench.options.nodes, profile) as swarm:
            for pair in range(-1, pairs):
                await asking.sample(swarm.system, SWARM, pair, profile.name)
                bench.progress(number * pairs + pair + 1, total)
            _tell_links(bench, profile, swarm)
        best = decode_limit(profile, bench.options.nodes, compute_s)
        reached = asking.decode_median(SWARM, profile.name)
        what = (
            f"1 / ({bench.options.nodes} hops of {1000 * profile.one_way_s:g} ms round the ring"
            f" + {1000 * compute_s:.1f} ms of computing, a token of one process)"
        )
        name = f"decode_tokens_per_s@{profile.name}"
        bench.limit(Limit(name, SWARM, limit=best, unit="tokens/s", share=reached / best, what=what))


class _Asking:
    """Asks systems the same, and remembers the decode rates that count."""

    def __init__(self, bench: Bench, prompts: PromptMaker) -> None:
        self._bench = bench
        self._prompts = prompts
        self._tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
        self._decode: dict[tuple[str, str], dict[int, float]] = {}

    async def sample(self, system: System, name: str, pair: int, profile: str) -> None:
        behind = f"@{profile}" if profile else ""

        async def measure() -> dict[str, tuple[float, str]]:
            short = await system.ask(self._prompt(PROMPT_TOKENS, pair), self._tokens)
            long = await system.ask(self._prompt(PREFILL_TOKENS, pair), PREFILL_ANSWER_TOKENS)
            # A sample that was thrown out is measured again, and takes the place of what it left here.
            self._decode.setdefault((name, profile), {})[pair] = short.decode_tokens_per_s
            return {
                f"decode_tokens_per_s{behind}": (short.decode_tokens_per_s, "tokens/s"),
                f"ttft_s{behind}": (short.ttft_s, "s"),
                f"prefill_tokens_per_s@{PREFILL_TOKENS}{behind}": (PREFILL_TOKENS / long.ttft_s, "tokens/s"),
            }

        await self._bench.sample(name, pair, measure)

    def decode_median(self, name: str, profile: str) -> float:
        """Tokens/s, the warm-up left out."""
        return median(rate for pair, rate in self._decode[name, profile].items() if pair >= 0)

    def _prompt(self, length: int, pair: int) -> Sequence[int]:
        return self._prompts.prompt(length, pair + 1)


async def _tell_check(bench: Bench, profile: Profile) -> None:
    rtt_s, bytes_s = await verify(profile)
    slower = min(profile.up_bytes_s, profile.down_bytes_s)
    bench.note(
        f"{profile.name}: asked for {1000 * profile.rtt_s:g} ms and {slower / MBIT:g} Mbit/s in its slower direction;"
        f" the emulated link itself measured {1000 * rtt_s:.1f} ms and {bytes_s / MBIT:.1f} Mbit/s"
    )


def _tell_links(bench: Bench, profile: Profile, swarm: ConditionedSwarm) -> None:
    rtts_s = swarm.rtts_s()
    measured = f"{1000 * median(rtts_s):.1f} ms" if rtts_s else "nothing"
    bench.note(
        f"{profile.name}: the client's links to the nodes measured {measured};"
        f" {swarm.passed_bytes / 1e6:.1f} MB went through the emulated links"
    )
    if profile.up_bytes_s != profile.down_bytes_s:
        bench.note(
            f"{profile.name}: bytes between two nodes pass the link of the one that was dialled, and not the other's"
        )


SCENARIO = Named("links", "answers over emulated links, from a LAN to a mobile network", run)
