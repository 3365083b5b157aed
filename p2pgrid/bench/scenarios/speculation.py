"""What drafts are worth where a round trip takes 100 ms: answers that quote their prompt, and ordinary ones."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median

from p2pgrid.bench.conditioned_swarm import open_conditioned_swarm
from p2pgrid.bench.conditioner_check import verify
from p2pgrid.bench.document import Limit
from p2pgrid.bench.lineup import in_turn
from p2pgrid.bench.one_process import open_one_process
from p2pgrid.bench.profiles import PROFILES
from p2pgrid.bench.prompts import ORDINARY, QUOTING, prompt_ids
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.stats import LIMIT
from p2pgrid.bench.systems import System, Timed
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.node.wiring import describe_model, model_store
from p2pgrid.services.pipeline import Terms

PROFILE = PROFILES["wan"]
KINDS = {"quoting": QUOTING, "ordinary": ORDINARY}
ANSWER_TOKENS = {"quoting": 100, "ordinary": 100}
QUICK_ANSWER_TOKENS = {"quoting": 16, "ordinary": 6}
DRAFTS, EXACT, ONE_PROCESS = "drafts", "exact", "one_process"
AT_LEAST = {"quoting": 1.8, "ordinary": 0.95}
OF_LIMIT_MIN = 0.9


def ring_limit(rtt_s: float, stages: int, compute_s: float) -> float:
    """Tokens/s at best without drafts: a token goes once round the ring of `stages`, and is computed in `compute_s`."""
    return 1 / ((stages * rtt_s / 2 if stages > 1 else 0.0) + compute_s)


async def run(bench: Bench) -> None:
    description = await describe_model(model_store(), bench.options.model)
    tokenizer = Tokenizer(description.tokenizer)
    lengths = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    bench.compare(DRAFTS, EXACT)
    rtt_s, _ = await verify(PROFILE)
    asking = _Asking(bench)
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(open_one_process(bench.options.model))
        swarm = (
            await stack.enter_async_context(open_conditioned_swarm(bench.options.model, bench.options.nodes, PROFILE))
        ).system
        systems: list[System] = [swarm.asked_with(DRAFTS, Terms()), swarm.asked_with(EXACT, Terms(exact=True)), alone]
        await asking.sample(systems[0], -1, "quoting", prompt_ids(tokenizer, QUOTING[0]), 2)  # links come up
        done, total = 0, bench.options.repeat * len(KINDS) * len(systems)
        for pair in range(bench.options.repeat):
            for kind, questions in KINDS.items():
                prompt = prompt_ids(tokenizer, questions[pair % len(questions)])
                for system in in_turn(systems, pair):
                    bench.progress(done, total)
                    await asking.sample(system, pair, kind, prompt, lengths[kind])
                    done += 1
                asking.tell_differences(pair, kind)
    for kind in KINDS:
        metric = f"decode_tokens_per_s@{kind}"
        compute_s = 1 / asking.rate(ONE_PROCESS, kind)
        best = ring_limit(rtt_s, bench.options.nodes, compute_s)
        what = (
            f"1 / ({bench.options.nodes} hops of {500 * rtt_s:.1f} ms, as measured, + {1000 * compute_s:.1f} ms"
            " of computing, a token of one process)"
        )
        bench.limit(Limit(metric, EXACT, best, "tokens/s", asking.rate(EXACT, kind) / best, what))
        bench.require(metric, DRAFTS, EXACT, at_least=AT_LEAST[kind])
        bench.require(metric, EXACT, LIMIT, at_least=OF_LIMIT_MIN)


class _Asking:
    """Asks systems the same, and remembers the answers that count."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._answers: dict[tuple[str, str], dict[int, Timed]] = {}

    async def sample(self, system: System, pair: int, kind: str, prompt: Sequence[int], tokens: int) -> None:
        await self._bench.sample(system.name, pair, partial(self._ask, system, pair, kind, prompt, tokens))

    async def _ask(self, system: System, pair: int, kind: str, prompt: Sequence[int], tokens: int) -> Figures:
        # A sample that was thrown out is measured again, and takes the place of what it left here.
        timed = self._answers.setdefault((system.name, kind), {})[pair] = await system.ask(prompt, tokens)
        return {
            f"decode_tokens_per_s@{kind}": (timed.decode_tokens_per_s, "tokens/s"),
            f"ttft_s@{kind}": (timed.ttft_s, "s"),
        }

    def rate(self, name: str, kind: str) -> float:
        """Tokens/s, the warm-up left out."""
        answers = self._answers[name, kind]
        return median(answer.decode_tokens_per_s for pair, answer in answers.items() if pair >= 0)

    def tell_differences(self, pair: int, kind: str) -> None:
        """Note when drafts or the split changed an answer."""
        if len({self._answers[name, kind][pair].token_ids for name in (DRAFTS, EXACT, ONE_PROCESS)}) > 1:
            names = f"{DRAFTS}, {EXACT} and {ONE_PROCESS}"
            self._bench.note(f"DIFFERENT TOKENS from {names} for the same prompt ({kind}): nothing may change them")


SCENARIO = Named("speculation", "drafts against none over 100 ms, for answers that quote and for ordinary ones", run)
