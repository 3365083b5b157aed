"""The stage side of the pipeline, spoken to message by message over the network in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest
import trio

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import LocalFault
from p2pgrid.ids import ModelId, PeerId, SessionId, Span
from p2pgrid.services.pipeline import Terms
from p2pgrid.services.worker import SESSION_IDLE_S_MAX, SUSPENDED_S_MAX
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import (
    STAGE_PROTOCOL,
    TOKENS_PER_STEP_MAX,
    Busy,
    Close,
    Failed,
    Hello,
    Lost,
    Open,
    Opened,
    OutOfSync,
    Replay,
    Sampling,
    SessionMessage,
    Step,
    Token,
)
from p2pgrid.wire.tensors import Floats, Ints, pack_floats, pack_ints
from tests.net.peers import Node as LinkedNode
from tests.net.peers import identity, linked
from tests.swarm_kit import (
    CONTEXT_MAX,
    GREEDY,
    LAYERS,
    MODEL,
    PROMPT,
    SEEDED,
    SESSION,
    SMALL_WINDOW,
    Chain,
    CountedStage,
    a_step,
    alone,
    answer_of,
    contact_of,
    generation,
    hop_of,
    joined,
    open_by_hand,
    open_chain,
    opening,
    reply,
    serving,
)

OTHER = SessionId("0e" * 16)


@asynccontextmanager
async def talking_to(chain: Chain, number: int = 800) -> AsyncIterator[LinkedNode]:
    """A client that says exactly what the test has it say."""
    async with chain.network.open(identity(number)) as transport, linked(transport) as client:
        for peer in chain.peers:
            await client.links.connect(contact_of(peer))
        yield client


# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("run_ahead", [True, False], ids=["fed by the last stage", "fed by the client"])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
async def test_a_pipeline_answers_like_one_process(
    parts: int, run_ahead: bool, sampling: Sampling, autojump_clock: trio.abc.Clock
) -> None:
    async with open_chain(parts) as chain:
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(sampling)) as session:
            answer = await answer_of(session, generation(run_ahead=run_ahead))
        assert answer.token_ids == await alone(sampling)
        await trio.sleep(1)
        assert chain.rows_taken == [0] * parts


async def test_a_stage_of_another_model_is_noticed_by_the_comparison(autojump_clock: trio.abc.Clock) -> None:
    assert await alone(seed=0) != await alone(seed=1)
    async with open_chain(2) as chain:
        impostor = CountedStage(chain.stages[1].span, seed=1)
        async with serving(chain.peers[1], impostor, InlineExecutor()):
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(GREEDY)) as session:
                answer = await answer_of(session, generation())
            assert answer.token_ids != await alone()


async def test_a_step_that_is_said_again_is_run_once(autojump_clock: trio.abc.Clock) -> None:
    """Else each of the two would go on round the route, for ever."""
    async with open_chain(3) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        first = chain.peers[0].transport.peer
        expected = await alone(max_tokens=6)
        for step in (a_step(0, PROMPT[:8]), a_step(8, PROMPT[8:], want=True)):
            granted = msgspec.structs.replace(step, until=len(PROMPT) + 5)
            await client.links.send(first, granted)
            await client.links.send(first, granted)
        tokens = [await reply(client) for _ in expected]
        assert tokens == [Token(SESSION, 0, len(PROMPT) + i, token) for i, token in enumerate(expected)]
        await trio.sleep(5)
        assert not client.arrived
        assert sum(stage.positions for stage in chain.stages[1:]) <= 2 * (len(PROMPT) + 5)


async def test_the_same_step_of_another_epoch_is_run_again(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        step = a_step(0, PROMPT, want=True)
        await client.links.send(chain.route[0].peer, step)
        first = await reply(client)
        for hop, stage in enumerate(chain.route):
            await client.links.send(stage.peer, msgspec.structs.replace(opening(chain.route, hop), epoch=1))
        assert isinstance(await reply(client), Opened)
        assert isinstance(await reply(client), Opened)
        for stage in chain.route:
            await client.links.send(stage.peer, Replay(SESSION, 1))
        await client.links.send(chain.route[0].peer, msgspec.structs.replace(step, epoch=1))
        assert await reply(client) == msgspec.structs.replace(first, epoch=1)


async def test_a_step_may_go_back_and_overwrite(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        first = chain.peers[0].transport.peer
        await client.links.send(first, a_step(0, PROMPT[:8]))
        await client.links.send(first, a_step(8, [1, 2, 3, 4, 5, 6]))
        await client.links.send(first, a_step(8, PROMPT[8:], want=True))
        assert await reply(client) == Token(SESSION, 0, len(PROMPT), (await alone(max_tokens=1))[0])


async def test_stop_tokens_are_not_fed_back(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        expected = await alone()
        asked = opening(chain.route, 0)
        await client.links.send(chain.route[0].peer, msgspec.structs.replace(asked, stop_tokens=(expected[2],)))
        assert isinstance(await reply(client), Opened)
        step = msgspec.structs.replace(a_step(0, PROMPT, want=True), until=CONTEXT_MAX)
        await client.links.send(chain.route[0].peer, step)
        await trio.sleep(5)
        assert [m.token for _, m in client.arrived if isinstance(m, Token)] == expected[
            : expected.index(expected[2]) + 1
        ]


# ── steps out of place ───────────────────────────────────────────────────────────────────────────────────


async def test_a_step_beyond_the_length_is_out_of_sync(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        first = chain.peers[0].transport.peer
        await client.links.send(first, a_step(0, PROMPT[:5]))
        await client.links.send(first, a_step(6, PROMPT[6:]))
        assert await reply(client) == OutOfSync(SESSION, 0, 0, 5)
        await client.links.send(first, a_step(5, PROMPT[5:], want=True))
        assert await reply(client) == Token(SESSION, 0, len(PROMPT), (await alone(max_tokens=1))[0])


async def test_a_step_of_another_epoch_is_ignored(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        first = chain.peers[0].transport.peer
        await client.links.send(first, a_step(0, PROMPT[:8]))
        await client.links.send(first, msgspec.structs.replace(a_step(0, [9] * 12, want=True), epoch=1))
        await client.links.send(first, a_step(8, PROMPT[8:], want=True))
        assert await reply(client) == Token(SESSION, 0, len(PROMPT), (await alone(max_tokens=1))[0])
        await trio.sleep(1)
        assert client.arrived == []


async def test_steps_of_a_stranger_are_ignored_and_its_credit_comes_back(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2, link_settings=SMALL_WINDOW) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        first = chain.peers[0].transport.peer
        await client.links.send(first, a_step(0, PROMPT[:8]))
        async with talking_to(chain, 801) as stranger:
            for _ in range(50):  # the window holds four
                with trio.fail_after(5):
                    await stranger.links.send(first, a_step(0, [9] * 8))
                    await stranger.links.send(chain.peers[1].transport.peer, a_step(0, [9] * 8))
                    await stranger.links.send(first, Close(SESSION))
            await client.links.send(first, a_step(8, PROMPT[8:], want=True))
            assert await reply(client) == Token(SESSION, 0, len(PROMPT), (await alone(max_tokens=1))[0])
            assert stranger.arrived == []


async def test_the_client_may_not_step_a_later_stage_itself(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        hidden = pack_floats(np.zeros((8, 16), np.float32))
        step = msgspec.structs.replace(a_step(0, PROMPT[:8], want=True), hidden=hidden)
        await client.links.send(chain.peers[1].transport.peer, step)
        await trio.sleep(1)
        assert chain.stages[1].steps == 0


# ── openings that cannot be ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("model", "this node serves model"),
        ("span", "the route expects layers 0:4"),
        ("hop", "hop 7 of a route of 2"),
        ("other peer's hop", "the route expects layers 5:10"),
        ("gap", "does not cover layers"),
        ("short", "does not cover layers"),
    ],
)
async def test_an_opening_that_does_not_fit_is_refused_with_the_reason(
    wrong: str, why: str, autojump_clock: trio.abc.Clock
) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        one, two = chain.route
        good = opening(chain.route, 0)
        bad: dict[str, Open] = {
            "model": msgspec.structs.replace(good, model=ModelId("0" * 64)),
            "span": msgspec.structs.replace(good, route=(hop_of(chain.peers[0], Span(0, 4)), two)),
            "hop": msgspec.structs.replace(good, hop=7),
            "other peer's hop": msgspec.structs.replace(good, hop=1),
            "gap": msgspec.structs.replace(good, route=(one, hop_of(chain.peers[1], Span(6, 10)))),
            "short": msgspec.structs.replace(good, route=(one,)),
        }
        await client.links.send(one.peer, bad[wrong])
        answer = await reply(client)
        assert isinstance(answer, Failed)
        assert why in answer.reason
        assert chain.rows_taken == [0, 0]
        assert client.links.is_up(one.peer), "a wrong opening ends the session, not the link"


async def test_a_session_id_in_use_is_refused_and_the_first_one_goes_on(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client, talking_to(chain, 801) as thief:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        await thief.links.send(chain.route[0].peer, opening(chain.route, 0))
        refused = await reply(thief)
        assert isinstance(refused, Failed)
        assert "open already" in refused.reason
        await client.links.send(chain.route[0].peer, a_step(0, PROMPT, want=True))
        assert await reply(client) == Token(SESSION, 0, len(PROMPT), (await alone(max_tokens=1))[0])


async def test_a_stage_whose_next_stage_cannot_be_reached_says_so(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        chain.network.kill(chain.peers[1].transport.peer)
        await client.links.send(chain.route[0].peer, opening(chain.route, 0))
        answer = await reply(client)
        assert isinstance(answer, Lost)
        assert (answer.hop, answer.peer) == (0, chain.route[1].peer)
        assert chain.rows_taken[0] == 1, "its client may know another stage"


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────


def session_number(number: int) -> SessionId:
    return SessionId(f"{number:032x}")


async def test_one_session_more_than_rows_is_told_busy_until_one_closes(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1, rows=3) as chain, talking_to(chain) as client:
        first = chain.route[0].peer
        for number in range(3):
            await open_by_hand(client, chain.route, session_number(number))
        client.arrived.clear()
        await client.links.send(first, opening(chain.route, 0, OTHER))
        busy = await reply(client)
        assert isinstance(busy, Busy)
        assert (busy.session, busy.hop) == (OTHER, 0)
        assert busy.retry_after_s > 0
        await client.links.send(first, Close(session_number(1)))
        await trio.sleep(1)
        assert chain.rows_taken == [2]
        assert len(chain.stages[0].released) == 1
        await open_by_hand(client, chain.route, OTHER)
        assert chain.rows_taken == [3]


async def test_a_row_is_used_again_by_a_session_that_sees_nothing_of_the_old_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(2, rows=1) as chain:
        for prompt in (PROMPT, PROMPT[::-1], PROMPT):
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                answer = await answer_of(session, generation(prompt))
            assert answer.token_ids == await alone(SEEDED, prompt)
            await trio.sleep(0.5)
        assert chain.stages[0].released == [0, 0, 0]


@pytest.mark.parametrize("parts", [1, 3])
async def test_the_rows_of_a_client_whose_link_is_lost_are_free_again(
    parts: int, autojump_clock: trio.abc.Clock
) -> None:
    async with open_chain(parts) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        await open_by_hand(client, chain.route, OTHER)
        assert chain.rows_taken == [2] * parts
        chain.network.kill(client.peer)
        await trio.sleep(1)
        assert chain.rows_taken == [0] * parts
        assert [sorted(stage.released) for stage in chain.stages] == [[0, 1]] * parts


async def test_a_session_for_which_nothing_comes_gives_its_row_back(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        await trio.sleep(SESSION_IDLE_S_MAX - 1)
        assert chain.rows_taken == [1]
        await trio.sleep(2)
        assert chain.rows_taken == [0]
        said = await reply(client)
        assert isinstance(said, Failed)
        assert "no step came" in said.reason


async def test_sessions_of_others_go_on_when_a_client_vanishes(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3, cost_s=0.01) as chain, talking_to(chain) as vanishing:
        await open_by_hand(vanishing, chain.route)
        async with trio.open_nursery() as tasks:

            async def vanish() -> None:
                step = msgspec.structs.replace(a_step(0, PROMPT, want=True), until=CONTEXT_MAX)
                await vanishing.links.send(chain.route[0].peer, step)
                await trio.sleep(0.2)
                chain.network.kill(vanishing.peer)

            tasks.start_soon(vanish)
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                answer = await answer_of(session, generation(max_tokens=24))
        assert answer.token_ids == await alone(SEEDED, max_tokens=24)
        await trio.sleep(1)
        assert chain.rows_taken == [0, 0, 0]


async def test_a_session_closed_in_the_middle_of_a_step_keeps_its_row_until_the_step_is_done(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1, cost_s=2.0) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        await client.links.send(chain.route[0].peer, a_step(0, PROMPT, want=True))
        await trio.sleep(1)
        await client.links.send(chain.route[0].peer, Close(SESSION))
        await trio.sleep(0.5)
        assert chain.rows_taken == [1], "the runtime still writes to the row"
        await trio.sleep(5)
        assert chain.rows_taken == [0]
        assert chain.stages[0].released == [0]


async def test_steps_that_arrive_while_a_session_ends_hurt_nobody(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1, cost_s=2.0, link_settings=SMALL_WINDOW) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        first = chain.route[0].peer
        await client.links.send(first, a_step(0, PROMPT))
        await trio.sleep(1)
        await client.links.send(first, Close(SESSION))
        for _ in range(20):
            with trio.fail_after(5):
                await client.links.send(first, a_step(0, PROMPT, want=True))
        await trio.sleep(10)
        assert chain.rows_taken == [0]
        await open_by_hand(client, chain.route, OTHER)


async def test_a_worker_that_is_cancelled_in_the_middle_of_a_step_gives_its_row_back(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        stage = CountedStage(Span(0, LAYERS))
        async with serving(chain.peers[0], stage, InlineExecutor(2.0)) as worker:
            await open_by_hand(client, chain.route)
            await client.links.send(chain.route[0].peer, a_step(0, PROMPT))
            await trio.sleep(1)
        assert stage.steps == 1
        assert stage.released == [0]
        assert (worker.sessions_open, worker.room.sessions_free) == (0, stage.rows)


async def test_a_client_that_breaks_its_link_while_it_opens_a_session_leaves_no_row_behind(
    autojump_clock: trio.abc.Clock,
) -> None:
    """The opening and the bytes that cut the link come in one piece, so that the loss is known first."""
    async with open_chain(1) as chain, chain.network.open(identity(801)) as rogue:
        for number in range(10):
            stream = await rogue.open_stream(contact_of(chain.peers[0]), STAGE_PROTOCOL)
            opened = frame(opening(chain.route, 0, session_number(number)))
            await stream.send_all(frame(Hello("", 2**20)) + opened + b"\0\0\0\1\xc1")
            await trio.sleep(1)
            await stream.reset()
        await trio.sleep(1)
        assert chain.rows_taken == [0]


# ── steps that cannot be computed ────────────────────────────────────────────────────────────────────────


def hidden_of(rows: int, columns: int = 16, value: float = 1.0) -> bytes:
    return pack_floats(np.full((rows, columns), value, np.float32))


BAD_FOR_STAGE_0 = {
    "a token past the vocabulary": (a_step(0, [256]), "token id"),
    "a negative token": (a_step(0, [-1]), "token id"),
    "half a token": (Step(SESSION, 0, 0, b"\0\0\0\0\0"), "no whole number"),
    "past the context": (a_step(0, [1] * (CONTEXT_MAX + 1)), "this session has room for"),
    "far past the context": (a_step(2**31 - 1, [1]), "this session has room for"),
    "scores without targets": (Step(SESSION, 0, 0, pack_ints([1, 2]), want="scores"), "0 targets for 2"),
    "targets past the vocabulary": (
        Step(SESSION, 0, 0, pack_ints([1]), want="scores", targets=pack_ints([256])),
        "token id",
    ),
}
BAD_FOR_STAGE_1 = {
    "no hidden states": b"",
    "too few rows": hidden_of(7),
    "too many columns": hidden_of(8, 17),
    "not a number": hidden_of(8, value=float("nan")),
    "infinite": hidden_of(8, value=float("inf")),
    "half a value": hidden_of(8)[:-1],
}


@pytest.mark.parametrize("what", BAD_FOR_STAGE_0)
async def test_a_step_that_does_not_fit_the_model_ends_its_session_alone(
    what: str, autojump_clock: trio.abc.Clock
) -> None:
    step, why = BAD_FOR_STAGE_0[what]
    async with open_chain(1) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        await open_by_hand(client, chain.route, OTHER)
        client.arrived.clear()
        await client.links.send(chain.route[0].peer, step)
        answer = await reply(client)
        assert isinstance(answer, Failed)
        assert (answer.session, answer.hop) == (SESSION, 0)
        assert why in answer.reason
        await client.links.send(chain.route[0].peer, a_step(0, PROMPT, want=True, session=OTHER))
        assert await reply(client) == Token(OTHER, 0, len(PROMPT), (await alone(max_tokens=1))[0])
        assert chain.rows_taken == [1]


@pytest.mark.parametrize("what", BAD_FOR_STAGE_1)
async def test_hidden_states_that_do_not_fit_end_the_session_and_not_the_node(
    what: str, autojump_clock: trio.abc.Clock
) -> None:
    """The rogue is a stage 0 that sends nonsense to the honest stage 1."""
    async with open_chain(2) as chain, talking_to(chain) as client, talking_to(chain, 801) as rogue:
        route = (msgspec.structs.replace(chain.route[0], peer=rogue.peer, addresses=()), chain.route[1])
        await client.links.send(route[1].peer, opening(route, 1))
        assert isinstance(await reply(client), Opened)
        step = msgspec.structs.replace(a_step(0, PROMPT[:8], want=True), hidden=BAD_FOR_STAGE_1[what])
        await rogue.links.send(route[1].peer, step)
        answer = await reply(client)
        assert isinstance(answer, Failed)
        assert answer.hop == 1
        assert chain.rows_taken == [0, 0]
        async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
            assert (await answer_of(session, generation())).token_ids == await alone(SEEDED)


class _WideStage(CountedStage):
    """A span of a model so wide that the hidden states of a full step are larger than a frame."""

    def __init__(self, span: Span) -> None:
        super().__init__(span, kv_positions=4 * 4096)
        self.hidden = 8192
        self.context_max = 4096

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        return np.zeros((len(tokens), self.hidden), np.float32)


async def test_a_step_whose_result_fits_no_frame_ends_its_session_alone(autojump_clock: trio.abc.Clock) -> None:
    async with (
        open_chain(2) as chain,
        talking_to(chain) as client,
        serving(chain.peers[0], _WideStage(chain.route[0].span), InlineExecutor()) as worker,
    ):
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        await client.links.send(chain.route[0].peer, a_step(0, [1] * TOKENS_PER_STEP_MAX))
        answer = await reply(client)
        assert isinstance(answer, Failed)
        assert "fewer" in answer.reason
        assert worker.room.sessions_free == 4


class _BrokenStage(CountedStage):
    """Fails at the second step."""

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        if self.steps:
            raise LocalFault("the runtime failed")
        return super().step(row, position, tokens, hidden, logits)


async def test_a_runtime_that_fails_ends_the_session_with_the_reason_and_frees_its_row(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        stage = _BrokenStage(Span(0, LAYERS))
        async with serving(chain.peers[0], stage, InlineExecutor()) as worker:
            await open_by_hand(client, chain.route)
            client.arrived.clear()
            await client.links.send(chain.route[0].peer, a_step(0, PROMPT[:8]))
            await client.links.send(chain.route[0].peer, a_step(8, PROMPT[8:], want=True))
            assert await reply(client) == Failed(SESSION, 0, 0, "the runtime failed")
            assert worker.room.sessions_free == stage.rows
            assert stage.released == [0]


async def test_a_session_that_lost_its_next_stage_waits_for_another_route_but_not_for_ever(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(3) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        chain.network.kill(chain.route[1].peer)
        lost_at_s = trio.current_time()
        lost = await reply(client)
        assert isinstance(lost, Lost)
        assert (lost.hop, lost.peer) == (0, chain.route[1].peer)
        assert trio.current_time() - lost_at_s < 0.1
        await trio.sleep_until(lost_at_s + SUSPENDED_S_MAX - 1)
        assert chain.workers[0].room.sessions_free == 3
        await trio.sleep_until(lost_at_s + SUSPENDED_S_MAX + 1)
        ended = await reply(client)
        assert isinstance(ended, Failed)
        assert "no other route came" in ended.reason
        assert chain.workers[0].room.sessions_free == 4
        assert chain.rows_taken[2] == 1, "it lost nobody, and waits for steps"


async def test_a_link_that_breaks_under_the_very_message_that_waited_for_it_ends_no_node(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that waited for room is written, the write finds the link broken, and all that waits becomes void."""
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        links, following = chain.peers[0].links, chain.route[1].peer
        try_send, send = links.try_send, links.send

        def no_room(peer: PeerId, message: SessionMessage, *, more: bool = False) -> bool:
            return peer != following and not isinstance(message, Lost) and try_send(peer, message, more=more)

        async def break_under(peer: PeerId, message: SessionMessage) -> None:
            await send(peer, message)
            if peer == following:
                chain.workers[0].on_lost(peer, "it broke")

        monkeypatch.setattr(links, "try_send", no_room)
        monkeypatch.setattr(links, "send", break_under)
        await client.links.send(chain.route[0].peer, a_step(0, PROMPT))
        with trio.fail_after(5):
            lost = await reply(client)
        assert isinstance(lost, Lost), "it waits behind what is void, and is not void itself"
        assert (lost.hop, lost.peer, lost.reason) == (0, following, "it broke")
        assert chain.rows_taken[0] == 1


# ── another route in mid-session ─────────────────────────────────────────────────────────────────────────


def reopening(chain: Chain, hop: int, epoch: int = 1) -> Open:
    return msgspec.structs.replace(opening(chain.route, hop), epoch=epoch)


async def test_a_session_that_is_opened_along_another_route_says_what_it_holds(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        await client.links.send(chain.route[0].peer, a_step(0, PROMPT[:8]))
        await trio.sleep(1)
        client.arrived.clear()
        for hop in range(2):
            await client.links.send(chain.route[hop].peer, reopening(chain, hop))
        found = sorted([await reply(client), await reply(client)], key=lambda opened: getattr(opened, "hop", 9))
        assert found == [Opened(SESSION, 1, 0, 8, 0), Opened(SESSION, 1, 1, 8, 8)], "the last stage sends nothing on"
        assert chain.rows_taken == [1, 1]


async def test_nothing_runs_in_a_new_epoch_before_the_client_said_what_to_replay(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        for hop in range(2):
            await client.links.send(chain.route[hop].peer, reopening(chain, hop))
        await trio.sleep(1)
        client.arrived.clear()
        step = msgspec.structs.replace(a_step(0, PROMPT, want=True), epoch=1)
        await client.links.send(chain.route[0].peer, step)
        await trio.sleep(1)
        assert chain.stages[0].steps == 0
        for hop in range(2):
            await client.links.send(chain.route[hop].peer, Replay(SESSION, 1))
        assert await reply(client) == Token(SESSION, 1, len(PROMPT), (await alone(max_tokens=1))[0])


async def test_what_is_replayed_goes_before_new_steps_and_no_further_than_it_must(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(3) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        first = chain.route[0].peer
        await client.links.send(first, a_step(0, PROMPT[:8]))
        await client.links.send(first, a_step(8, PROMPT[8:16]))
        await trio.sleep(1)
        for hop in range(3):
            await client.links.send(chain.route[hop].peer, reopening(chain, hop))
        await trio.sleep(1)
        before = [stage.positions for stage in chain.stages]
        client.arrived.clear()
        step = msgspec.structs.replace(a_step(16, PROMPT[16:], want=True), epoch=1)
        await client.links.send(first, step)
        await client.links.send(first, Replay(SESSION, 1, 0, 16, 1))
        for hop in (1, 2):
            await client.links.send(chain.route[hop].peer, Replay(SESSION, 1))
        assert await reply(client) == Token(SESSION, 1, len(PROMPT), (await alone(max_tokens=1))[0])
        assert [stage.positions - b for stage, b in zip(chain.stages, before, strict=True)] == [4, 20, 4]


async def test_steps_of_the_route_before_are_passed_over_and_their_credit_comes_back(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1, link_settings=SMALL_WINDOW, cost_s=0.5) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        first = chain.route[0].peer
        await client.links.send(first, a_step(0, PROMPT[:8]))
        await client.links.send(first, a_step(8, PROMPT[8:16]))
        await trio.sleep(0.1)
        await client.links.send(first, reopening(chain, 0))
        for _ in range(20):  # the window holds four
            with trio.fail_after(5):
                await client.links.send(first, a_step(8, PROMPT[8:16]))
        with trio.fail_after(5):
            await client.arrival(2)
        opened = client.arrived[-1][1]
        assert opened == Opened(SESSION, 1, 0, 8, 8), "the step that ran came to its end, the one that waited did not"
        assert chain.stages[0].steps == 1


@pytest.mark.parametrize("who", ["another client", "the same epoch", "an earlier epoch"])
async def test_a_session_is_not_taken_over(who: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client, talking_to(chain, 801) as other:
        await open_by_hand(client, chain.route)
        await client.links.send(chain.route[0].peer, reopening(chain, 0, 5))
        await client.arrival(2)
        client.arrived.clear()
        asker = other if who == "another client" else client
        epoch = {"another client": 6, "the same epoch": 5, "an earlier epoch": 4}[who]
        await asker.links.send(chain.route[0].peer, reopening(chain, 0, epoch))
        refused = await reply(asker)
        assert isinstance(refused, Failed)
        assert "open already" in refused.reason
        await other.links.send(chain.route[0].peer, Replay(SESSION, 5))
        step = msgspec.structs.replace(a_step(0, PROMPT, want=True), epoch=5)
        await client.links.send(chain.route[0].peer, step)
        await trio.sleep(1)
        assert client.arrived == [], "nobody but its client sets it going"
        await client.links.send(chain.route[0].peer, Replay(SESSION, 5))
        assert isinstance(await reply(client), Token)


async def test_a_new_route_that_does_not_fit_ends_the_session_with_the_reason(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(2) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        await client.links.send(chain.route[0].peer, msgspec.structs.replace(reopening(chain, 0), hop=1))
        refused = await reply(client)
        assert isinstance(refused, Failed)
        assert (refused.epoch, "the route expects" in refused.reason) == (1, True)
        assert chain.rows_taken[0] == 0


async def test_a_message_to_a_stage_of_a_session_that_it_does_not_know_hurts_nobody(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        await client.links.send(chain.route[0].peer, Replay(SESSION, 1, 0, 99))
        await client.links.send(chain.route[0].peer, Close(SESSION))
        await open_by_hand(client, chain.route)


async def test_an_answer_sent_to_a_stage_cuts_its_sender_off(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client, joined(chain.network, 802) as idle:
        await open_by_hand(client, chain.route)
        # Whoever serves nothing takes no opening either.
        await client.links.connect(contact_of(idle))
        await client.links.send(idle.transport.peer, opening(chain.route, 0))
        await client.loss()
        assert client.lost[0][0] == idle.transport.peer
        assert client.links.is_up(chain.route[0].peer)


# ── draining ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_stage_takes_no_session_and_ends_the_rest_at_its_deadline(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        client.arrived.clear()
        started_s = trio.current_time()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(chain.workers[0].drain, 2.0)
            await trio.sleep(0.1)
            assert chain.workers[0].room.sessions_free == 0
            await client.links.send(chain.route[0].peer, opening(chain.route, 0, OTHER))
            assert isinstance(await reply(client), Busy)
            await client.links.send(chain.route[0].peer, a_step(0, PROMPT, want=True))
            assert isinstance(await reply(client), Token), "sessions that run go on until the deadline"
        assert trio.current_time() - started_s == pytest.approx(2.0, abs=0.1)
        assert await reply(client) == Failed(SESSION, 0, 0, "the node is leaving")
        assert chain.stages[0].released == [0]


async def test_draining_ends_as_soon_as_the_last_session_does(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(1) as chain, talking_to(chain) as client:
        await open_by_hand(client, chain.route)
        await open_by_hand(client, chain.route, OTHER)
        started_s = trio.current_time()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(chain.workers[0].drain, 60.0)
            for at_s, session in ((1, SESSION), (2, OTHER)):
                await trio.sleep_until(started_s + at_s)
                await client.links.send(chain.route[0].peer, Close(session))
        assert trio.current_time() - started_s == pytest.approx(2.0, abs=0.1)


async def test_a_slow_client_holds_up_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    """It grants a window of four messages and consumes none of its tokens."""
    async with (
        open_chain(1) as chain,
        chain.network.open(identity(803)) as transport,
        linked(transport, LinkSettings(window_bytes=4096), hold=True) as slow,
    ):
        await slow.links.connect(contact_of(chain.peers[0]))
        await slow.links.send(chain.route[0].peer, opening(chain.route, 0, OTHER))
        await slow.arrival(1)
        step = msgspec.structs.replace(a_step(0, PROMPT, want=True, session=OTHER), until=CONTEXT_MAX)
        await slow.links.send(chain.route[0].peer, step)
        await trio.sleep(5)
        assert len(slow.arrived) == 4
        with trio.fail_after(2):
            async with chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session:
                assert (await answer_of(session, generation())).token_ids == await alone(SEEDED)
