"""What a participant sees of a swarm, and that it sends a token through where nobody has seen one."""

import random
from contextlib import AsyncExitStack

from p2pgrid.ids import Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.peer import Peer
from p2pgrid.node.survey import ModelSurvey, ask_around, examine, survey_document, survey_of
from tests.swarm_kit import LAYERS, MODEL, Life, cut, joined, living


async def surveyed(client: Peer) -> ModelSurvey:
    await ask_around(client, [MODEL])
    return await examine(client, MODEL)


async def serving_nodes(stack: AsyncExitStack, network: MemoryNetwork, spans: list[Span]) -> list[Life]:
    lives = [await stack.enter_async_context(living(network, number, span)) for number, span in enumerate(spans)]
    for life in lives:
        await life.is_at("serving")
    return lives


async def test_a_covered_model_is_usable_once_our_own_token_went_through(autojump_clock: object) -> None:
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        lives = await serving_nodes(stack, network, cut(2))
        client = await stack.enter_async_context(joined(network, 900))
        await ask_around(client, [MODEL])
        before = survey_of(client, MODEL)
        found = await surveyed(client)
    assert before.health.canary_age_s is None
    assert found.usable
    assert found.own_canary
    assert found.health.canary_age_s == 0
    assert (found.name, found.layers) == ("toy", LAYERS)
    document = survey_document(found)
    assert [node["layers"] for node in document["nodes"]] == [[0, 5], [5, 10]]
    assert {node["peer_id"] for node in document["nodes"]} == {life.peer.transport.peer for life in lives}
    assert {(node["positions_free"], node["positions_max"]) for node in document["nodes"]} == {(256, 256)}
    assert document["canary_by"] == "status"


async def test_layers_that_nobody_serves_are_named(autojump_clock: object) -> None:
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        await serving_nodes(stack, network, [Span(0, 6)])
        found = await surveyed(await stack.enter_async_context(joined(network, 900)))
    assert not found.usable
    assert survey_document(found)["missing"] == [[6, 10]]
    assert any("layers 6:10" in reason for reason in found.health.reasons)


async def test_a_model_of_which_nobody_knows_is_not_usable(autojump_clock: object) -> None:
    async with joined(MemoryNetwork(random.Random(1)), 900) as client:
        found = await surveyed(client)
    assert (found.usable, found.adverts, found.name) == (False, (), MODEL[:12])
