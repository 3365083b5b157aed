"""One process with all layers: the answer that every pipeline is compared with."""

import numpy as np
import pytest
import trio

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import SendStep
from p2pgrid.core.sampling import sample
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import LocalFault, PeerMisbehaved
from p2pgrid.ids import Span
from p2pgrid.services.local import LocalSession
from p2pgrid.wire.messages import Sampling, Token
from tests.swarm_kit import CHUNK, GREEDY, LAYERS, PROMPT, SEEDED, CountedStage, alone, answer_of, generation


def whole() -> CountedStage:
    return CountedStage(Span(0, LAYERS), 1)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_the_answer_is_that_of_stepping_the_stage_by_hand(sampling: Sampling) -> None:
    stage = whole()
    expected: list[int] = []
    ids = list(PROMPT)
    position = 0
    for _ in range(16):
        logits = stage.step(0, position, np.array(ids[position:], np.int32), None, 1)
        position = len(ids)
        ids.append(sample(logits[-1], sampling, position))
        expected.append(ids[-1])
    assert await alone(sampling) == expected


async def test_a_session_is_a_session_again_from_its_first_step_on() -> None:
    session = LocalSession(whole(), InlineExecutor(), Drawer(SEEDED))
    first = await answer_of(session, generation(run_ahead=False))
    second = await answer_of(session, generation(run_ahead=False))
    assert first.token_ids == second.token_ids
    assert first.route == ()


async def test_a_step_that_asks_for_nothing_has_no_answer() -> None:
    session = LocalSession(whole(), InlineExecutor(), Drawer(GREEDY))
    await session.send(SendStep(0, PROMPT[:CHUNK], "nothing"))
    with pytest.raises(LocalFault, match="no step asked for"):
        await session.receive()
    await session.send(SendStep(CHUNK, PROMPT[CHUNK:], "token"))
    answer = await session.receive()
    assert isinstance(answer, Token)
    assert (answer.position, answer.token) == (len(PROMPT), (await alone(max_tokens=1))[0])


async def test_a_token_past_the_vocabulary_is_refused_before_it_is_computed() -> None:
    stage = whole()
    with pytest.raises(PeerMisbehaved, match="token id"):
        await LocalSession(stage, InlineExecutor(), Drawer(GREEDY)).send(SendStep(0, (256,), "token"))
    assert stage.steps == 0


async def test_a_step_takes_its_turn_in_the_executor(autojump_clock: trio.abc.Clock) -> None:
    session = LocalSession(whole(), InlineExecutor(0.5), Drawer(GREEDY))
    wanted = generation(max_tokens=3, run_ahead=False)
    first_s = 0.5 * len(wanted.start())
    answer = await answer_of(session, wanted)
    assert answer.token_times_s == pytest.approx([first_s, first_s + 0.5, first_s + 1.0])
