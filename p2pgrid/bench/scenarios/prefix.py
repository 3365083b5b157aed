"""What it saves that stages keep the beginnings of prompts: requests that begin like an earlier one."""

from itertools import count

from p2pgrid.bench.lineup import PromptMaker, prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.swarm_system import SwarmSystem, open_swarm_system
from p2pgrid.bench.systems import Timed
from p2pgrid.services.pipeline import Terms

SHARED_TOKENS = 1000
NEW_TOKENS = 24
ANSWER_TOKENS = 16
SYSTEM = "swarm"
SECOND_MAX = 0.25
"""Of the first request's time to its first token."""
LIKE_FIRST = (0.8, 1.25)


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    for kind in ("second", "next_turn", "other_scope"):
        bench.relate(f"ttft_s@{kind}/first", SYSTEM, f"ttft_s@{kind}", "ttft_s@first")
    bench.require("ttft_s@second/first", SYSTEM, SYSTEM, at_most=SECOND_MAX)
    bench.require("ttft_s@other_scope/first", SYSTEM, SYSTEM, at_least=LIKE_FIRST[0], at_most=LIKE_FIRST[1])
    salts = count()  # what was thrown out is asked anew with another prompt: nobody may hold it already

    async with open_swarm_system(bench.options.model, bench.options.nodes) as swarm:

        async def measure() -> Figures:
            return await _ask_all(bench, swarm, maker, next(salts))

        for pair in range(-1, bench.options.repeat):
            bench.progress(pair + 1, bench.options.repeat + 1)
            await bench.sample(SYSTEM, pair, measure)
    bench.note(
        f"the prompts of first and second share {SHARED_TOKENS} tokens and have {NEW_TOKENS} of their own; other_scope"
        " is the second's prompt where nobody may reuse it; next_turn is the first's prompt, its answer of"
        f" {ANSWER_TOKENS} tokens, and {NEW_TOKENS} new ones"
    )


async def _ask_all(bench: Bench, swarm: SwarmSystem, maker: PromptMaker, salt: int) -> Figures:
    ours = swarm.asked_with(SYSTEM, Terms(cache_scope=f"ours {salt}"), reuses=True)
    theirs = swarm.asked_with(SYSTEM, Terms(cache_scope=f"theirs {salt}"), reuses=True)
    shared = maker.prompt(SHARED_TOKENS, salt)
    own, other, asked_next = (maker.prompt(NEW_TOKENS, 3 * salt + i) for i in range(3))

    first = await ours.ask(shared + own, ANSWER_TOKENS)
    second = await ours.ask(shared + other, ANSWER_TOKENS)
    other_scope = await theirs.ask(shared + other, ANSWER_TOKENS)
    turn = shared + own + first.token_ids + asked_next
    next_turn = await ours.ask(turn, ANSWER_TOKENS)
    if second.token_ids != other_scope.token_ids:
        bench.note("DIFFERENT TOKENS with and without a prefix that was kept: it must change nothing")
    figures: Figures = {}
    for kind, prompt_tokens, answer in (
        ("first", SHARED_TOKENS + NEW_TOKENS, first),
        ("second", SHARED_TOKENS + NEW_TOKENS, second),
        ("other_scope", SHARED_TOKENS + NEW_TOKENS, other_scope),
        ("next_turn", len(turn), next_turn),
    ):
        figures |= _figures(kind, prompt_tokens, answer)
    return figures


def _figures(kind: str, prompt_tokens: int, answer: Timed) -> Figures:
    return {
        f"ttft_s@{kind}": (answer.ttft_s, "s"),
        f"computed_positions@{kind}": (float(prompt_tokens - answer.cached_tokens), "positions"),
    }


SCENARIO = Named("prefix", "the first token of prompts that begin like an earlier one", run)
