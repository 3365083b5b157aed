"""The other end of a hand-over, told what no stage that leaves would say: it gives the row back, and goes on."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from p2pgrid.core.generation import SendStep
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.errors import PeerError
from p2pgrid.ids import SessionId
from p2pgrid.net.exchange import Conversation
from p2pgrid.services.pipeline import Terms
from p2pgrid.services.worker import SUSPENDED_S_MAX
from p2pgrid.services.worker.handover import SILENT_S_MAX
from p2pgrid.wire.messages import Open, Token
from p2pgrid.wire.tensors import pack_ints
from p2pgrid.wire.transfer_messages import KV_PROTOCOL, KvDone, KvOffer, KvRefused, KvRows, KvTaken
from tests.net.hostile import assert_survives, payloads
from tests.net.peers import identity
from tests.swarm_kit import (
    CONTEXT_MAX,
    LAYERS,
    MODEL,
    PROMPT,
    SEEDED,
    Chain,
    alone,
    contact_of,
    open_chain,
    opening,
)

OTHER = SessionId("0e" * 16)
CLIENT = identity(900).peer


@asynccontextmanager
async def offering(chain: Chain, offer: Open, number: int = 801) -> AsyncIterator[Conversation]:
    """A stage that hands its session over to the chain's middle one."""
    async with chain.network.open(identity(number)) as transport:
        stream = await transport.open_stream(contact_of(chain.peers[1]), KV_PROTOCOL)
        conversation = Conversation(stream)
        await conversation.send(KvOffer(CLIENT, offer))
        yield conversation
        await stream.aclose()


def rows_of(chain: Chain, position: int = 0, count: int = len(PROMPT)) -> KvRows:
    """What a stage of the same span holds of the prompt."""
    span = chain.stages[1].span
    stage = ToyStage(span, LAYERS, 1, CONTEXT_MAX)
    tokens = np.array(PROMPT, np.int32)
    stage.step(0, 0, tokens, np.zeros((len(tokens), stage.hidden), np.float32), 0)
    kv = stage.save(0, position, position + count).tobytes()
    return KvRows(position, pack_ints(PROMPT[position : position + count]), kv, hashlib.sha256(kv).digest())


async def test_a_row_that_came_whole_waits_for_its_client_and_no_longer_than_a_suspended_one(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_chain(3) as chain, offering(chain, opening(chain.route, 1)) as stage:
        await stage.receive(KvTaken)
        await stage.send(rows_of(chain, 0, 12))
        await stage.send(rows_of(chain, 8, 12))  # four positions were taken back, and computed again
        await stage.send(KvDone(20))
        await stage.receive(KvTaken)
        assert chain.rows_taken == [0, 1, 0]
        await trio.sleep(SUSPENDED_S_MAX + 1)
        assert chain.rows_taken == [0, 0, 0]


@pytest.mark.parametrize("wrong", ["model", "hop", "route"])
async def test_what_is_not_for_this_stage_is_refused_with_a_reason(wrong: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain:
        bad = {"model": {"model": "71" * 32}, "hop": {"hop": 2}, "route": {"route": chain.route[:2]}}[wrong]
        async with offering(chain, msgspec.structs.replace(opening(chain.route, 1), **bad)) as stage:
            assert (await stage.receive(KvRefused)).reason


async def test_a_session_that_gets_another_route_while_its_next_step_is_waited_for_goes_on(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with (
        open_chain(3) as chain,
        trio.open_nursery() as tasks,
        chain.client.pipeline.open(MODEL, chain.route, Terms(SEEDED)) as session,
    ):
        await session.send(SendStep(0, PROMPT, "token"))
        first = await session.receive(1.0)
        assert isinstance(first, Token)
        here = chain.workers[1]._sessions[session.id]
        tasks.start_soon(here.hold_between_steps, 60.0)
        await trio.sleep(0.1)
        await session.reroute(chain.route)
        await session.send(SendStep(len(PROMPT), (first.token,), "token"))
        second = await session.receive(1.0)
        assert isinstance(second, Token)
        assert [first.token, second.token] == await alone(SEEDED, max_tokens=2)


async def test_a_full_stage_refuses(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3, rows=1) as chain, offering(chain, opening(chain.route, 1)) as stage:
        await stage.receive(KvTaken)
        async with offering(chain, opening(chain.route, 1, OTHER), number=802) as another:
            assert "no room" in (await another.receive(KvRefused)).reason


async def test_a_session_that_is_here_already_is_not_taken_again(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain, offering(chain, opening(chain.route, 1)) as stage:
        await stage.receive(KvTaken)
        async with offering(chain, opening(chain.route, 1), number=802) as another:
            assert "open already" in (await another.receive(KvRefused)).reason


def _spoiled(rows: KvRows) -> dict[str, list[msgspec.Struct]]:
    replace = msgspec.structs.replace
    return {
        "other bytes": [replace(rows, kv=rows.kv[:-1] + bytes([rows.kv[-1] ^ 1]))],
        "fewer bytes": [replace(rows, kv=rows.kv[:-1], digest=hashlib.sha256(rows.kv[:-1]).digest())],
        "no bytes": [replace(rows, kv=b"", digest=hashlib.sha256(b"").digest())],
        "a gap": [replace(rows, position=1)],
        "past the end": [rows, *(replace(rows, position=n) for n in (20, 40, 60))],
        "no tokens of this model": [replace(rows, tokens=pack_ints([999] * len(PROMPT)))],
        "a shorter row": [rows, KvDone(len(PROMPT) + 1)],
        "an empty row": [KvDone(1)],
        "another offer": [KvTaken()],
    }


@pytest.mark.parametrize("what", _spoiled(KvRows(0, b"1234", b"1", b"")))
async def test_what_is_not_a_row_is_given_up(what: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain, offering(chain, opening(chain.route, 1)) as stage:
        await stage.receive(KvTaken)
        with pytest.raises(PeerError):
            for message in _spoiled(rows_of(chain))[what]:
                await stage.send(message)
            await stage.receive(KvTaken)
        await trio.sleep(0.1)
        assert chain.rows_taken == [0, 0, 0]


async def test_a_giver_that_goes_away_in_the_middle_leaves_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain:
        async with offering(chain, opening(chain.route, 1)) as stage:
            await stage.receive(KvTaken)
            await stage.send(rows_of(chain))
        await trio.sleep(0.1)
        assert chain.rows_taken == [0, 0, 0]


@given(payloads=payloads())
@settings(max_examples=30, deadline=None)
def test_any_bytes_leave_the_stage_as_it_was(payloads: list[bytes]) -> None:
    async def main() -> None:
        async with open_chain(3) as chain, chain.network.open(identity(803)) as rogue:
            await assert_survives(chain.peers[1].transport, rogue, KV_PROTOCOL, payloads)
            assert chain.rows_taken == [0, 0, 0]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_giver_that_falls_silent_is_not_waited_for(autojump_clock: trio.abc.Clock) -> None:
    async with open_chain(3) as chain, offering(chain, opening(chain.route, 1)) as stage:
        await stage.receive(KvTaken)
        await stage.send(rows_of(chain))
        assert chain.rows_taken == [0, 1, 0]
        await trio.sleep(SILENT_S_MAX + 1)
        assert chain.rows_taken == [0, 0, 0]
