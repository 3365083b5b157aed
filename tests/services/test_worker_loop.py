"""What a stage does for many sessions at once, spoken to through the real pipeline over the network in memory."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import numpy as np
import pytest
import trio

from p2pgrid.core.batching import PREFILL_POSITIONS_MAX
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.turns import Turn
from p2pgrid.errors import Overloaded, P2pgridError
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.answer import Answer
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import PREFIX_BLOCK, Sampling
from p2pgrid.wire.tensors import Floats, Ints
from tests.swarm_kit import (
    CHUNK,
    CONTEXT_MAX,
    GREEDY,
    MODEL,
    PROMPT,
    SEEDED,
    Chain,
    CountedStage,
    alone,
    answer_of,
    generation,
    open_chain,
)

LONG = tuple((11 * i + 5) % 256 for i in range(3 * PREFIX_BLOCK + 20))


async def ask(
    chain: Chain, prompt: Sequence[int], terms: Terms, max_tokens: int = 16, context_max: int = CONTEXT_MAX
) -> Answer:
    async with chain.client.pipeline.open(MODEL, chain.route, terms) as session:
        return await answer_of(session, generation(prompt, max_tokens, context_max=context_max))


def prompts(count: int) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    return [tuple(rng.randrange(256) for _ in range(rng.randrange(2, 24))) for _ in range(count)]


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_sessions_that_are_run_together_answer_as_each_alone(
    sampling: Sampling, autojump_clock: trio.abc.Clock
) -> None:
    asked = prompts(8)
    answers: dict[int, list[int]] = {}
    async with open_chain(3, rows=8) as chain:

        async def one(i: int) -> None:
            answers[i] = (await ask(chain, asked[i], Terms(sampling))).token_ids

        async with trio.open_nursery() as tasks:
            for i in range(len(asked)):
                tasks.start_soon(one, i)
        await trio.sleep(1)
        assert max(chain.stages[1].batches) > 1, "nothing was ever run together"
        assert chain.rows_taken == [0, 0, 0]
    assert answers == {i: await alone(sampling, prompt) for i, prompt in enumerate(asked)}


async def test_steps_that_are_run_as_soon_as_they_are_read_change_no_answer() -> None:
    asked = prompts(8)
    answers: dict[int, list[int]] = {}
    at_once: list[Turn] = []

    class Watched(LaneExecutor):
        def turn_at_once(self, expected_s: float | None) -> Turn | None:
            turn = super().turn_at_once(expected_s)
            at_once.extend([turn] if turn is not None else [])
            return turn

    async with open_chain(3, rows=8, executor=Watched) as chain:

        async def one(i: int) -> None:
            answers[i] = (await ask(chain, asked[i], Terms(SEEDED))).token_ids

        async with trio.open_nursery() as tasks:
            for i in range(len(asked)):
                tasks.start_soon(one, i)
    assert at_once, "nothing was ever run in the reader's turn"
    assert answers == {i: await alone(SEEDED, prompt) for i, prompt in enumerate(asked)}


async def test_a_long_prompt_does_not_stop_those_who_decode(autojump_clock: trio.abc.Clock) -> None:
    gaps: list[float] = []
    step_s = 0.01
    async with open_chain(1, rows=4, cost_s=step_s, context_max=512) as chain:

        async def decode() -> None:
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
                answer = await answer_of(session, generation(PROMPT, 40))
                times = answer.token_times_s
                gaps.extend(b - a for a, b in pairwise(times))

        async with trio.open_nursery() as tasks:
            tasks.start_soon(decode)
            await trio.sleep(0.1)
            tasks.start_soon(ask, chain, tuple(i % 256 for i in range(400)), Terms(GREEDY), 1, 512)
    together = PREFILL_POSITIONS_MAX // CHUNK
    assert max(gaps) < (together + 1.5) * step_s, "more of the prompt than may be came between two tokens"


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_more_sessions_than_the_budget_holds_are_told_busy_and_all_are_served_in_the_end(
    autojump_clock: trio.abc.Clock,
) -> None:
    served = refused = 0
    async with open_chain(2, rows=64, kv_positions=8 * 40) as chain:

        async def one(i: int) -> None:
            nonlocal served, refused
            while True:
                try:
                    await ask(chain, PROMPT, Terms(GREEDY, positions=40))
                    served += 1
                    return
                except Overloaded as busy:
                    refused += 1
                    assert 0 < busy.retry_after_s <= 5
                    assert max(worker.sessions_open for worker in chain.workers) <= 8
                    await trio.sleep(busy.retry_after_s * (0.5 + i / 64))

        async with trio.open_nursery() as tasks:
            for i in range(64):
                tasks.start_soon(one, i)
        await trio.sleep(1)
        assert served == 64
        assert refused > 0
        assert [worker.room.nbytes for worker in chain.workers] == [0, 0]


async def test_a_session_that_no_stage_could_ever_hold_fails_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1, kv_positions=32) as chain:
        with pytest.raises(P2pgridError, match="more than this node has memory for"):
            await ask(chain, PROMPT, Terms(GREEDY, positions=33))


async def test_a_session_may_not_outgrow_what_it_asked_for(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain:
        with pytest.raises(P2pgridError, match="has room for 24"):
            await ask(chain, PROMPT, Terms(GREEDY, positions=24))


# ── prefixes ─────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def wide_chain(**options: int) -> AsyncIterator[Chain]:
    async with open_chain(3, context_max=512, **options) as chain:
        yield chain


def positions_run(chain: Chain) -> int:
    return sum(stage.positions for stage in chain.stages)


async def test_a_prompt_that_begins_like_an_earlier_one_computes_only_what_is_new(
    autojump_clock: trio.abc.Clock,
) -> None:
    other_end = (*LONG[: 2 * PREFIX_BLOCK + 9], *PROMPT)
    async with wide_chain() as chain:
        first = await ask(chain, LONG, Terms(GREEDY, prompt=LONG), context_max=512)
        before = positions_run(chain)
        again = await ask(chain, LONG, Terms(GREEDY, prompt=LONG), context_max=512)
        assert again.token_ids == first.token_ids == await alone(GREEDY, LONG, context_max=512)
        assert (first.cached_tokens, again.cached_tokens) == (0, 3 * PREFIX_BLOCK)
        assert positions_run(chain) - before == 3 * (20 + 15)
        third = await ask(chain, other_end, Terms(SEEDED, prompt=other_end), context_max=512)
        assert third.cached_tokens == 2 * PREFIX_BLOCK
        assert third.token_ids == await alone(SEEDED, other_end, context_max=512)


async def test_a_stage_that_was_drained_holds_no_prefixes(autojump_clock: trio.abc.Clock) -> None:
    """Its node may be about to load other layers, and needs the room."""
    async with wide_chain() as chain:
        await ask(chain, LONG, Terms(GREEDY, prompt=LONG), context_max=512)
        await trio.sleep(1)
        assert chain.workers[0].room.nbytes > 0
        await chain.workers[0].drain(1.0)
        assert chain.workers[0].room.nbytes == 0


async def test_scopes_share_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with wide_chain() as chain:
        for scope in ("mine", "yours", ""):
            answer = await ask(chain, LONG, Terms(GREEDY, prompt=LONG, cache_scope=scope), context_max=512)
            assert answer.cached_tokens == 0, scope
        again = await ask(chain, LONG, Terms(GREEDY, prompt=LONG, cache_scope="yours"), context_max=512)
        assert again.cached_tokens == 3 * PREFIX_BLOCK


async def test_two_clients_share_nothing_though_they_name_the_same_scope(autojump_clock: trio.abc.Clock) -> None:
    terms = Terms(GREEDY, prompt=LONG, cache_scope="the same")
    async with wide_chain() as chain:
        await ask(chain, LONG, terms, context_max=512)
        async with chain.peers[1].pipeline.open(MODEL, chain.route, terms) as session:
            assert session.cached == 0


async def test_what_was_evicted_is_computed_again_to_the_same_answer(autojump_clock: trio.abc.Clock) -> None:
    other = tuple(255 - token for token in LONG)
    room = len(LONG) + 16
    async with wide_chain(kv_positions=room + PREFIX_BLOCK) as chain:
        terms = Terms(SEEDED, prompt=LONG, positions=room)
        first = await ask(chain, LONG, terms, context_max=512)
        await trio.sleep(1)
        await ask(chain, other, Terms(SEEDED, prompt=other, positions=room), context_max=512)
        await trio.sleep(1)
        again = await ask(chain, LONG, terms, context_max=512)
        assert again.cached_tokens < 3 * PREFIX_BLOCK, "nothing was evicted"
        assert again.token_ids == first.token_ids
        await trio.sleep(1)
        bounds = [(room + PREFIX_BLOCK) * stage.position_bytes for stage in chain.stages]
        assert all(worker.room.nbytes <= bound for worker, bound in zip(chain.workers, bounds, strict=True))


async def test_rows_made_one_position_at_a_time_are_not_shared(autojump_clock: trio.abc.Clock) -> None:
    async with wide_chain() as chain:
        first = await ask(chain, LONG, Terms(GREEDY, prompt=LONG), 3 * PREFIX_BLOCK, context_max=512)
        turn = (*LONG, *first.token_ids, *PROMPT)
        second = await ask(chain, turn, Terms(GREEDY, prompt=turn), context_max=512)
        assert second.cached_tokens == 3 * PREFIX_BLOCK  # of the prompt, and none of the answer
        assert second.token_ids == await alone(GREEDY, turn, context_max=512)


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────


class Reciting(CountedStage):
    """A stage whose model says the same `PERIOD` tokens over and over, and still computes every row."""

    PERIOD = 24

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        output = super().step(row, position, tokens, hidden, logits)
        return self._recite(output, tokens[len(tokens) - logits :])

    def _recite(self, output: Floats, tokens: Ints) -> Floats:
        if self.span.stop < self.layers:
            return output
        said = np.zeros((len(tokens), self.vocab), np.float32)
        said[np.arange(len(tokens)), (tokens + 1) % self.PERIOD] = 1
        return said


async def timed(chain: Chain, prompt: Sequence[int], *, exact: bool) -> tuple[list[int], float]:
    began = trio.current_time()
    answer = await ask(chain, prompt, Terms(GREEDY, exact=exact), 160, context_max=512)
    return answer.token_ids, trio.current_time() - began


@asynccontextmanager
async def far_apart(make: type[CountedStage], latency_s: float = 0.05) -> AsyncIterator[Chain]:
    network = MemoryNetwork(random.Random(1), latency_s)
    async with open_chain(3, cost_s=0.003, context_max=512, network=network, make=make) as chain:
        yield chain


async def test_drafts_shorten_an_answer_that_repeats_itself_and_change_nothing(autojump_clock: trio.abc.Clock) -> None:
    prompt = tuple(range(Reciting.PERIOD)) * 2
    async with far_apart(Reciting) as chain:
        plain, plain_s = await timed(chain, prompt, exact=True)
        drafted, drafted_s = await timed(chain, prompt, exact=False)
        await trio.sleep(1)
        assert drafted == plain
        assert plain_s > 1.8 * drafted_s
        assert chain.rows_taken == [0, 0, 0]


async def test_drafts_cost_little_where_nothing_repeats(autojump_clock: trio.abc.Clock) -> None:
    async with far_apart(CountedStage) as chain:
        plain, plain_s = await timed(chain, PROMPT, exact=True)
        drafted, drafted_s = await timed(chain, PROMPT, exact=False)
        assert drafted == plain
        assert drafted_s < plain_s / 0.95


# ── nothing is left behind ───────────────────────────────────────────────────────────────────────────────


async def test_of_200_cancelled_and_disconnected_requests_nothing_is_left(autojump_clock: trio.abc.Clock) -> None:
    rng = random.Random(3)
    async with open_chain(3, rows=16, context_max=512, make=Reciting) as chain:
        await ask(chain, PROMPT, Terms(GREEDY), context_max=512)  # all links are up now
        await trio.sleep(5)
        tasks_before = trio.lowlevel.current_statistics().tasks_living

        async def give_up(prompt: Sequence[int]) -> None:
            with trio.move_on_after(rng.uniform(0, 0.3)):
                with suppress(P2pgridError):  # busy, or its link was cut below
                    await ask(chain, prompt, Terms(GREEDY, prompt=prompt, positions=300), 100, context_max=512)

        for _ in range(25):
            async with trio.open_nursery() as requests:
                for _ in range(8):
                    requests.start_soon(give_up, LONG[: rng.randrange(2, len(LONG))])
            if rng.random() < 0.3:
                await chain.cut_off_client()
        answer = await ask(chain, PROMPT, Terms(GREEDY), context_max=512)
        assert len(answer.token_ids) == 16
        await trio.sleep(5)
        assert chain.rows_taken == [0, 0, 0]
        assert [worker.sessions_open for worker in chain.workers] == [0, 0, 0]
        assert [worker.room.nbytes - worker.room.prefixes.nbytes for worker in chain.workers] == [0, 0, 0]
        assert [sorted(set(stage.released)) for stage in chain.stages] == [sorted(set(s.taken)) for s in chain.stages]
        assert trio.lowlevel.current_statistics().tasks_living == tasks_before
