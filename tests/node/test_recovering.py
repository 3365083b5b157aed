"""Answers whose stages are lost: they go on elsewhere, to the token as if nothing had happened, and nothing is left."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.core.routing import PATIENCE_S_MIN
from p2pgrid.errors import NoRoute, PeerUnavailable
from p2pgrid.ids import PeerId, Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.answer import Answer, score
from p2pgrid.node.canary import ANSWER_S_MAX as CANARY_S_MAX
from p2pgrid.node.client import open_session
from p2pgrid.node.peer import Peer
from p2pgrid.node.recovering import RecoveringSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.services.pipeline.session import Heard
from p2pgrid.services.worker import Worker, sent
from p2pgrid.settings import LinkSettings, PipelineSettings
from p2pgrid.wire.messages import Sampling, Token
from tests.swarm_kit import (
    CHUNK,
    CONTEXT_MAX,
    GREEDY,
    LAYERS,
    MODEL,
    PROMPT,
    SEEDED,
    Life,
    alone,
    answer_of,
    cut,
    generation,
    joined,
    living,
)

TOKENS = 30
SILENCE_S = LinkSettings().silence_s_max


PUNISHED = Sampling(
    temperature=0.9,
    top_p=0.95,
    seed=11,
    presence_penalty=1.5,
    frequency_penalty=2.0,
    logit_bias=((200, 5.0), (201, 5.0), (202, 5.0)),
)
"""Its few likely tokens come again and again, so that it matters what came before."""
STRINGS = '{"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 100}'
"""A schema of answers that never end."""


@dataclass
class Swarm:
    """A client and serving nodes, of which some are lost while it is answered."""

    network: MemoryNetwork
    client: Peer
    lives: list[Life] = field(default_factory=list)
    gone: set[PeerId] = field(default_factory=set)
    seen: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)

    def life_of(self, peer: PeerId) -> Life:
        return next(life for life in self.lives if life.peer.transport.peer == peer)

    def kill(self, peer: PeerId) -> None:
        self.network.kill(peer)
        self.gone.add(peer)

    def freeze(self, peer: PeerId) -> None:
        self.network.freeze(peer, True)
        self.gone.add(peer)

    async def ask(
        self,
        at: dict[int, Callable[[RecoveringSession], None]],
        sampling: Sampling = SEEDED,
        max_tokens: int = TOKENS,
        terms: Terms | None = None,
        prompt: Sequence[int] = PROMPT,
        context_max: int = CONTEXT_MAX,
    ) -> Answer:
        """Ask; behind so many tokens something happens."""

        def bytes_of(token: int) -> bytes:
            self.seen.append(token)
            self.times_s.append(trio.current_time())
            if len(self.seen) in at:
                at[len(self.seen)](session)
            return b""

        self.seen.clear()
        self.times_s.clear()
        async with open_session(self.client, MODEL, LAYERS, terms or Terms(sampling)) as session:
            if 0 in at:
                at[0](session)
            return await answer_of(session, generation(prompt, max_tokens, context_max=context_max), bytes_of)

    @property
    def staying(self) -> list[Life]:
        return [life for life in self.lives if life.peer.transport.peer not in self.gone]

    @property
    def gap_s(self) -> float:
        """The longest wait for a token."""
        return max(b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False))

    async def check_nothing_is_left(self) -> None:
        """Of those who are still there; canary tokens that are just on their way are given time to come through."""
        for _ in range(int(CANARY_S_MAX) + 1):
            await trio.sleep(1)
            if not any(life.peer.worker.sessions_open for life in self.staying if life.peer.worker is not None):
                break
        for life in self.staying:
            worker = life.peer.worker
            if worker is not None:
                assert worker.sessions_open == 0
                assert worker.room.sent.memory_bytes == worker.room.sent.disk_bytes == 0
                assert not worker.room.sent._sessions
                assert all(life.stages[0]._lengths[row] == 0 for row in range(life.stages[0].rows))


@asynccontextmanager
async def swarm(
    spans: Sequence[Span],
    *,
    rows: int = 4,
    cost_s: float = 0.01,
    latency_s: float = 0.001,
    settings: PipelineSettings = PipelineSettings(prefill_chunk=CHUNK),  # noqa: B008 - frozen
) -> AsyncIterator[Swarm]:
    network = MemoryNetwork(random.Random(1), latency_s)
    async with AsyncExitStack() as stack:
        lives = [
            await stack.enter_async_context(living(network, number, span, rows=rows, cost_s=cost_s))
            for number, span in enumerate(spans)
        ]
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900, pipeline_settings=settings))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == len(spans), 6)
        yield Swarm(network, client, lives)


def doubled(parts: int) -> list[Span]:
    return [*cut(parts), *cut(parts)]


# ── one stage is lost ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("after", [1, 7, TOKENS - 1])
@pytest.mark.parametrize("hop", range(3))
async def test_a_killed_stage_costs_a_moment_and_no_token(
    hop: int, after: int, sampling: Sampling, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3)) as here:
        answer = await here.ask({after: lambda session: here.kill(session.route[hop].peer)}, sampling)
        assert answer.token_ids == await alone(sampling, max_tokens=TOKENS)
        assert [recovery.answers for recovery in answer.recoveries] == [after]
        assert not here.gone & {stage.peer for stage in answer.route}
        assert here.gap_s < 1.0
        await here.check_nothing_is_left()


@pytest.mark.parametrize("hop", range(3))
async def test_a_frozen_stage_is_noticed_within_two_seconds(hop: int, autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3)) as here:
        answer = await here.ask({7: lambda session: here.freeze(session.route[hop].peer)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert SILENCE_S - 0.6 < here.gap_s < 2.5
        await here.check_nothing_is_left()


@pytest.mark.parametrize("hop", range(3))
async def test_a_stage_whose_step_never_ends_is_replaced_although_its_links_live(
    hop: int, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3)) as here:

        def strike(session: RecoveringSession) -> None:
            stuck = session.route[hop].peer
            here.life_of(stuck).cost_s = 30.0
            here.gone.add(stuck)

        answer = await here.ask({7: strike})
        for stuck in here.gone:
            here.life_of(stuck).cost_s = 0.01  # or canary tokens would queue there for ever
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert [recovery.lost[0] for recovery in answer.recoveries] == [*here.gone]
        assert PATIENCE_S_MIN < here.gap_s < PATIENCE_S_MIN + PipelineSettings().open_s_max + 1
        await here.check_nothing_is_left()


async def test_a_step_that_never_ends_holds_up_no_other_session_of_its_stage(autojump_clock: trio.abc.Clock) -> None:
    """That stage has no step of theirs under way, and yet none of theirs will ever begin."""
    async with swarm(doubled(2)) as here:
        sampling = [Sampling(temperature=0.9, seed=seed) for seed in range(4)]
        answers: dict[int, Answer] = {}

        async def ask(number: int) -> None:
            async with open_session(here.client, MODEL, LAYERS, Terms(sampling[number])) as session:
                answers[number] = await answer_of(session, generation(PROMPT, TOKENS))

        async with trio.open_nursery() as requests:
            for number in range(4):
                requests.start_soon(ask, number)
            await trio.sleep(0.3)
            stuck = max(here.lives, key=lambda life: life.peer.worker.sessions_open if life.peer.worker else 0)
            assert stuck.peer.worker is not None
            assert stuck.peer.worker.sessions_open > 1
            stuck.cost_s = 30.0
            here.gone.add(stuck.peer.transport.peer)
        stuck.cost_s = 0.01
        for number, answer in answers.items():
            assert answer.token_ids == await alone(sampling[number], max_tokens=TOKENS)
            assert stuck.peer.transport.peer not in {stage.peer for stage in answer.route}
            assert max(answer.token_times_s) < 2 * (PATIENCE_S_MIN + PipelineSettings().open_s_max)
        await here.check_nothing_is_left()


async def test_a_slow_stage_is_asked_and_not_called_dead(autojump_clock: trio.abc.Clock) -> None:
    """A step of it takes longer than any that its advert spoke of."""
    async with swarm(doubled(3)) as here:

        def slow(session: RecoveringSession) -> None:
            here.life_of(session.route[1].peer).cost_s = PATIENCE_S_MIN + 1

        answer = await here.ask({7: slow}, max_tokens=12)
        assert answer.token_ids == (await alone(SEEDED, max_tokens=TOKENS))[:12]
        assert not answer.recoveries
        assert here.gap_s > PATIENCE_S_MIN
        await here.check_nothing_is_left()


async def test_a_long_prompt_is_waited_for_at_slow_stages(autojump_clock: trio.abc.Clock) -> None:
    """Longer than any token may take; what was read until it was asked for is not read again."""
    settings = PipelineSettings(prefill_chunk=CHUNK, token_s_max=6.0)
    async with swarm(cut(3), cost_s=1.0, settings=settings) as here:
        prompt = PROMPT * 3
        answer = await here.ask({}, max_tokens=2, prompt=prompt)
        assert answer.token_ids == await alone(SEEDED, prompt=prompt, max_tokens=2)
        assert not answer.recoveries
        assert trio.current_time() > settings.token_s_max
        await here.check_nothing_is_left()


async def test_a_silence_ends_the_answer_after_all(autojump_clock: trio.abc.Clock) -> None:
    """Every stage says that it computes, and no token comes."""
    async with swarm(cut(3), settings=PipelineSettings(prefill_chunk=CHUNK, token_s_max=20.0)) as here:

        def mute(session: RecoveringSession) -> None:
            take = session._session.take

            def without_tokens(peer: PeerId, message: Heard) -> None:
                if not isinstance(message, Token):
                    take(peer, message)

            session._session.take = without_tokens  # type: ignore[method-assign]

        began_s = trio.current_time()
        with pytest.raises(PeerUnavailable, match="no token for 20 s"):
            await here.ask({7: mute})
        assert 20 < trio.current_time() - began_s < 25
        await here.check_nothing_is_left()


async def test_only_the_new_stage_computes_again(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3)) as here:
        before: dict[PeerId, int] = {}

        def strike(session: RecoveringSession) -> None:
            for life in here.lives:
                before[life.peer.transport.peer] = life.stages[0].positions
            here.kill(session.route[1].peer)

        answer = await here.ask({10: strike})
        left = len(PROMPT) + TOKENS - 1 - (len(PROMPT) + 10)
        for hop in (0, 2):
            stage = here.life_of(answer.route[hop].peer).stages[0]
            assert stage.positions - before[answer.route[hop].peer] <= left + 3, "a step or two that was under way"
        new = here.life_of(answer.route[1].peer).stages[0]
        computed = new.positions - before[answer.route[1].peer]
        assert 0 <= computed - (len(PROMPT) + TOKENS - 1) <= 2, "a canary token or two besides"


async def test_a_stage_that_is_left_keeps_its_place_although_others_are_quicker(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm([*cut(3), Span(3, 6), Span(0, LAYERS)], cost_s=0.01) as here:
        routes = []

        def strike(session: RecoveringSession) -> None:
            routes.append(session.route)
            if len(session.route) == 3:
                here.kill(session.route[1].peer)

        answer = await here.ask({5: strike})
        if len(routes[0]) == 3:
            assert [answer.route[0], answer.route[2]] == [routes[0][0], routes[0][2]]
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)


async def test_another_cut_of_the_layers_takes_over(autojump_clock: trio.abc.Clock) -> None:
    async with swarm([Span(0, 5), Span(5, 10), Span(5, 8), Span(8, 10)]) as here:
        first: list[int] = []

        def strike(session: RecoveringSession) -> None:
            first.append(len(session.route))
            here.kill(session.route[1].peer)

        answer = await here.ask({9: strike})
        assert {first[0], len(answer.route)} == {2, 3}
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


# ── several, one after another, and at once ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hops", [(0, 1), (1, 2), (0, 2), (0, 1, 2)])
async def test_several_stages_lost_at_once_are_all_replaced(
    hops: tuple[int, ...], autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3)) as here:

        def strike(session: RecoveringSession) -> None:
            for hop in hops:
                here.kill(session.route[hop].peer)

        answer = await here.ask({8: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


@pytest.mark.parametrize("hop", range(3))
async def test_the_replacement_is_lost_as_well(hop: int, autojump_clock: trio.abc.Clock) -> None:
    async with swarm([*doubled(3), *cut(3)]) as here:

        def strike(session: RecoveringSession) -> None:
            here.kill(session.route[hop].peer)

        answer = await here.ask({5: strike, 6: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 2
        await here.check_nothing_is_left()


@pytest.mark.parametrize("delay_s", [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("hop", range(3))
async def test_the_replacement_is_lost_while_it_is_filled(
    hop: int, delay_s: float, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm([*doubled(3), *cut(3)]) as here, trio.open_nursery() as tasks:

        async def strike_again(session: RecoveringSession) -> None:
            await trio.sleep(delay_s)
            here.kill(session.route[hop].peer)

        def strike(session: RecoveringSession) -> None:
            here.kill(session.route[hop].peer)
            tasks.start_soon(strike_again, session)

        answer = await here.ask({8: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
async def test_all_stages_are_lost_one_after_another(order: tuple[int, ...], autojump_clock: trio.abc.Clock) -> None:
    """The last ones are filled by stages that were filled themselves."""
    async with swarm(doubled(3)) as here:

        def strike(hop: int) -> Callable[[RecoveringSession], None]:
            return lambda session: here.kill(session.route[hop].peer)

        answer = await here.ask({6: strike(order[0]), 12: strike(order[1]), 18: strike(order[2])})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 3
        await here.check_nothing_is_left()


# ── what the last stage must remember ──


@pytest.mark.parametrize("scope", ["", "mine"])
@pytest.mark.parametrize("hops", [(0,), (2,), (1, 2)])
async def test_penalties_count_what_was_drawn_before_a_stage_was_lost(
    hops: tuple[int, ...], scope: str, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm([*doubled(3), *cut(3)]) as here:

        def strike(session: RecoveringSession) -> None:
            for hop in hops:
                here.kill(session.route[hop].peer)

        terms = Terms(PUNISHED, prompt=PROMPT, cache_scope=scope)
        answer = await here.ask({7: strike, 15: strike}, terms=terms)
        assert answer.token_ids == await alone(PUNISHED, max_tokens=TOKENS)
        assert answer.token_ids != await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 2
        await here.check_nothing_is_left()


@pytest.mark.parametrize("hops", [(0,), (2,), (1, 2)])
async def test_a_schema_holds_an_answer_whose_stages_are_lost(
    hops: tuple[int, ...], autojump_clock: trio.abc.Clock
) -> None:
    async with swarm([*doubled(3), *cut(3)]) as here:

        def strike(session: RecoveringSession) -> None:
            for hop in hops:
                here.kill(session.route[hop].peer)

        terms = Terms(SEEDED, prompt=PROMPT, json_schema=STRINGS)
        answer = await here.ask({7: strike, 15: strike}, terms=terms)
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS, json_schema=STRINGS)
        assert answer.token_ids != await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 2
        await here.check_nothing_is_left()


# ── before the first token ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delay_s", [0.0, 0.011, 0.025, 0.045, 0.06])
@pytest.mark.parametrize("hop", range(3))
async def test_a_stage_lost_while_the_prompt_is_read_is_replaced(
    hop: int, delay_s: float, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3), cost_s=0.02) as here, trio.open_nursery() as tasks:

        async def strike(session: RecoveringSession) -> None:
            await trio.sleep(delay_s)
            here.kill(session.route[hop].peer)

        answer = await here.ask({0: lambda session: tasks.start_soon(strike, session)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 1
        await here.check_nothing_is_left()


@pytest.mark.parametrize("hop", range(3))
async def test_scores_are_those_of_an_undisturbed_run(hop: int, autojump_clock: trio.abc.Clock) -> None:
    text = [(11 * i + 5) % 256 for i in range(50)]
    async with swarm(doubled(3), cost_s=0.05) as here, trio.open_nursery() as tasks:

        async def run(strike_s: float | None) -> object:
            async with open_session(here.client, MODEL, LAYERS, Terms()) as session:

                async def strike() -> None:
                    await trio.sleep(strike_s or 0)
                    here.kill(session.route[hop].peer)

                if strike_s is not None:
                    tasks.start_soon(strike)
                scored = await score(session, text, context_max=CONTEXT_MAX, chunk=CHUNK)
                assert len(session.recoveries) == (strike_s is not None)
                return scored

        calm = await run(None)
        assert await run(0.23) == calm
        await here.check_nothing_is_left()


# ── what some of the stages held before ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hop", range(3))
@pytest.mark.parametrize("after", [0, 3])
async def test_what_was_kept_of_a_prompt_is_computed_again_where_it_is_lost(
    hop: int, after: int, autojump_clock: trio.abc.Clock
) -> None:
    """No hidden states were sent for kept positions, so that nobody but the client can replay them."""
    prompt = [(7 * i + 3) % 256 for i in range(150)]
    async with big_swarm() as here:
        terms = Terms(SEEDED, prompt=prompt, cache_scope="mine")
        first = await here.ask({}, max_tokens=4, terms=terms, prompt=prompt, context_max=256)
        await trio.sleep(1)
        assert first.cached_tokens == 0
        answer = await here.ask(
            {after: lambda session: here.kill(session.route[hop].peer)},
            max_tokens=8,
            terms=terms,
            prompt=prompt,
            context_max=256,
        )
        assert answer.cached_tokens == 128
        assert answer.token_ids == await alone(SEEDED, prompt, 8, context_max=256)
        assert len(answer.recoveries) == 1
        await trio.sleep(1)
        assert all(worker.sessions_open == 0 for worker in workers_of(here))


@asynccontextmanager
async def big_swarm() -> AsyncIterator[Swarm]:
    """Rows of 256 positions."""
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = []
        for number, span in enumerate(doubled(3)):
            lives.append(await stack.enter_async_context(living(network, number, span, context_max=256)))
        for life in lives:
            await life.reached("serving")
        client = await stack.enter_async_context(joined(network, 900))
        assert await client.discovery.wait_until(MODEL, lambda: len(client.view.adverts(MODEL)) == 6, 6)
        yield Swarm(network, client, lives)


def workers_of(here: Swarm) -> list[Worker]:
    """Of those who are still there."""
    alive = [life.peer for life in here.lives if life.peer.transport.peer not in here.gone]
    return [peer.worker for peer in alive if peer.worker is not None]


async def test_a_prompt_read_by_stages_that_were_replaced_is_not_kept(autojump_clock: trio.abc.Clock) -> None:
    """Whoever was part of one session must be able to spoil that one alone."""
    prompt = [(7 * i + 3) % 256 for i in range(150)]
    async with big_swarm() as here:
        terms = Terms(SEEDED, prompt=prompt, cache_scope="mine")
        await here.ask(
            {3: lambda s: here.kill(s.route[0].peer)}, max_tokens=8, terms=terms, prompt=prompt, context_max=256
        )
        await trio.sleep(1)
        assert [worker.room.prefixes.nbytes for worker in workers_of(here)] == [0] * 5


@pytest.mark.parametrize("disk_bytes_max", [10**9, 0])
async def test_what_was_sent_is_found_on_the_disk_or_computed_again(
    disk_bytes_max: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    monkeypatch.setattr(sent.SentLog.__init__, "__defaults__", (2000, disk_bytes_max))
    async with swarm(doubled(3)) as here:
        spilled: list[int] = []

        def strike(session: RecoveringSession) -> None:
            spilled.extend(worker.room.sent.disk_bytes for worker in workers_of(here))
            here.kill(session.route[1].peer)

        answer = await here.ask({20: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert (max(spilled) > 0) == bool(disk_bytes_max)
        await here.check_nothing_is_left()


# ── nobody takes the place ───────────────────────────────────────────────────────────────────────────────


async def test_an_answer_waits_for_a_node_that_takes_the_layers(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(cut(3)) as here, trio.open_nursery() as tasks:
        stop = trio.Event()

        async def join_late() -> None:
            await trio.sleep(8)
            async with living(here.network, 50, cut(3)[1], cost_s=0.01) as late:
                here.lives.append(late)
                await stop.wait()

        def strike(session: RecoveringSession) -> None:
            here.kill(session.route[1].peer)
            tasks.start_soon(join_late)

        answer = await here.ask({5: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert answer.route[1].peer == here.lives[-1].peer.transport.peer
        assert 8 < here.gap_s < 12
        await here.check_nothing_is_left()
        stop.set()


@pytest.mark.parametrize("hop", range(3))
async def test_without_anybody_the_error_names_the_layers_and_comes_in_time(
    hop: int, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(cut(3)) as here:
        with pytest.raises(NoRoute, match=rf"stage {hop} .*layers {cut(3)[hop]} of 0:10 are missing") as raised:
            await here.ask({5: lambda session: here.kill(session.route[hop].peer)})
        assert "\n" not in str(raised.value)
        assert trio.current_time() - here.times_s[-1] < here.client.settings.recover_s_max + 3
        assert here.seen == (await alone(SEEDED, max_tokens=TOKENS))[: len(here.seen)]
        await here.check_nothing_is_left()


async def test_stages_that_lost_each_other_but_live_are_taken_again(autojump_clock: trio.abc.Clock) -> None:
    """Nobody else is left, so that whoever failed is asked again."""
    async with swarm(cut(3)) as here:
        answer = await here.ask({5: lambda session: here.network.disconnect(session.route[1].peer)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) >= 1
        await here.check_nothing_is_left()


async def test_a_client_cut_off_for_a_moment_goes_on(autojump_clock: trio.abc.Clock) -> None:
    """Its sessions were ended with its links; the token ids are all it needs."""
    async with swarm(cut(3)) as here:
        own = here.client.transport.peer
        answer = await here.ask({5: lambda session: here.network.disconnect(own)})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


async def test_full_replicas_are_waited_for(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3), rows=1) as here:

        def strike(session: RecoveringSession) -> None:
            here.kill(session.route[1].peer)

        async def hold_for_a_while(spare: Life) -> None:
            worker = spare.peer.worker
            assert worker is not None
            rows, worker.room._free_rows = worker.room._free_rows, []
            await trio.sleep(3)
            worker.room._free_rows = rows

        async with trio.open_nursery() as tasks:

            def strike_and_fill(session: RecoveringSession) -> None:
                strike(session)
                used = {stage.peer for stage in session.route}
                for life in here.lives:
                    if life.peer.transport.peer not in used:
                        tasks.start_soon(hold_for_a_while, life)

            answer = await here.ask({5: strike_and_fill})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()


async def test_a_full_replica_does_not_keep_one_that_is_back_from_being_asked(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3)) as here, trio.open_nursery() as tasks:

        def strike(session: RecoveringSession) -> None:
            lost = session.route[1].peer
            here.network.freeze(lost, True)
            tasks.start_soon(thaw, lost)
            for life in here.lives:
                if life.stages[0].span == session.route[1].span and life.peer.transport.peer != lost:
                    assert life.peer.worker is not None
                    full.append(life.peer.worker.room._free_rows.copy())
                    life.peer.worker.room._free_rows.clear()

        async def thaw(lost: PeerId) -> None:
            await trio.sleep(4)
            here.network.freeze(lost, False)

        full: list[list[int]] = []
        answer = await here.ask({5: strike})
        assert full
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)


async def test_a_node_that_leaves_hands_nothing_over_and_the_answer_goes_on(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3), cost_s=0.1) as here:

        def leave(session: RecoveringSession) -> None:
            here.gone.add(session.route[1].peer)
            here.life_of(session.route[1].peer).stop.set()

        answer = await here.ask({5: leave})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        assert len(answer.recoveries) == 1
        await here.check_nothing_is_left()


# ── how it ends ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01, 0.05, 0.1, 0.3])
async def test_a_client_that_gives_up_in_the_middle_leaves_nothing_behind(
    delay_s: float, autojump_clock: trio.abc.Clock
) -> None:
    async with swarm(doubled(3)) as here:
        with trio.CancelScope() as asking:

            def strike(session: RecoveringSession) -> None:
                here.kill(session.route[1].peer)
                asking.deadline = trio.current_time() + delay_s

            await here.ask({8: strike})
        await here.check_nothing_is_left()


async def test_a_client_that_dies_while_stages_wait_for_it_leaves_nothing_behind(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with swarm(cut(3)) as here:
        with trio.CancelScope() as asking:

            async def die() -> None:
                await trio.sleep(0.5)
                here.network.kill(here.client.transport.peer)
                asking.cancel()

            async with trio.open_nursery() as tasks:

                def strike(session: RecoveringSession) -> None:
                    here.kill(session.route[1].peer)
                    tasks.start_soon(die)

                await here.ask({8: strike})
        await here.check_nothing_is_left()


async def test_a_relayed_session_ends_with_the_loss(autojump_clock: trio.abc.Clock) -> None:
    async with swarm(doubled(3)) as here:
        async with open_session(here.client, MODEL, LAYERS, Terms(SEEDED, relayed=True)) as session:
            await session.send(SendStep(0, PROMPT, "token"))
            await session.receive()
            here.kill(session.route[1].peer)
            with pytest.raises(PeerUnavailable, match="stage 1"):
                await session.receive()
        await here.check_nothing_is_left()


async def test_a_replica_that_died_unnoticed_does_not_use_up_the_patience(autojump_clock: trio.abc.Clock) -> None:
    """The only other one is well again, but is heard of only when it renews its advert."""
    async with swarm(doubled(3)) as here:
        spans = cut(3)

        def strike(session: RecoveringSession) -> None:
            used = session.route[1].peer
            (spare,) = (
                life.peer.transport.peer
                for life in here.lives
                if life.phases[-1][1] == spans[1] and life.peer.transport.peer != used
            )
            here.kill(spare)
            here.network.disconnect(used)

        answer = await here.ask({6: strike})
        assert answer.token_ids == await alone(SEEDED, max_tokens=TOKENS)
        await here.check_nothing_is_left()
