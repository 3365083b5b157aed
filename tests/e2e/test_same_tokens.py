"""The promise that everything else hangs on: any split answers bit for bit like one process."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import trio

from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.ids import Span
from p2pgrid.node.answer import ScoredText
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.request import Asker, Request
from p2pgrid.node.wiring import build_stage, describe_model, open_network
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.swarm.local_swarm import LISTEN, open_local_swarm
from p2pgrid.wire.messages import Sampling
from tests.e2e.processes import RunningSwarm, running_swarm
from tests.real_model import NAME, real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(300)]

PROMPTS = [
    "What is the capital of France?",
    "Write two lines about the sea.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "List three fruits.",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 3?",
    "Explain in one sentence what a pipeline is.",
    "Name a famous painter and one painting.",
    "日本の首都はどこですか?",
]
GREEDY = Sampling()
SEEDED = Sampling(temperature=0.8, seed=7)
MAX_TOKENS = 20
NEAR_TIE = 0.5
"""Difference of the two largest logits."""
REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text())
TEXTS = [case for case in REFERENCE["cases"] if case["kind"] == "score"]

Answers = dict[Request, list[int]]


def requests() -> list[Request]:
    return [Request(p, max_tokens=MAX_TOKENS, sampling=s) for s in (GREEDY, SEEDED) for p in PROMPTS]


@cache
def alone() -> tuple[Answers, list[ScoredText]]:
    """Every answer and every score, from the whole model in this process."""
    store = real_store()

    async def main() -> tuple[Answers, list[ScoredText]]:
        description = await describe_model(store, NAME)
        layers = Span(0, description.manifest.layers)
        stage = await build_stage(store, description, layers, StageSettings(sessions_max=1))
        asker, executor = Asker(description, StageSettings(), PipelineSettings()), LaneExecutor()
        answers: Answers = {}
        for request in requests():
            answer = await asker.locally(stage, executor, request, lambda piece: None)
            answers[request] = answer.token_ids
        scores = [await asker.score_locally(stage, executor, case["text"]) for case in TEXTS]
        stage.close()
        return answers, scores

    return trio.run(main)


def over_swarm(bootstrap: Sequence[str]) -> tuple[Answers, list[ScoredText], list[Span]]:
    """The same over a swarm: the greedy answers one after another, the seeded ones all at once."""
    store = real_store()

    async def main() -> tuple[Answers, list[ScoredText], list[Span]]:
        async with open_network(bootstrap) as peer:
            description = await describe_model(store, NAME)
            asker = Asker(description, StageSettings(), PipelineSettings())
            route = await wait_for_route(peer, description.id, description.manifest.layers)
            answers: Answers = {}

            async def ask(request: Request) -> None:
                answer = await asker.over_swarm(peer, request, lambda piece: None)
                answers[request] = answer.token_ids

            for request in requests():
                if request.sampling == GREEDY:
                    await ask(request)
            async with trio.open_nursery() as tasks:
                for request in requests():
                    if request.sampling == SEEDED:
                        tasks.start_soon(ask, request)
            scores = [await asker.score_over_swarm(peer, case["text"]) for case in TEXTS]
            return answers, scores, [hop.span for hop in route]

    return trio.run(main)


def check_that_all_is_equal(swarm: RunningSwarm, nodes: int) -> None:
    expected, expected_scores = alone()
    answers, scores, route = over_swarm(swarm.bootstrap)
    assert len(route) == nodes
    assert answers == expected
    assert scores == expected_scores


def test_three_nodes_answer_and_score_bit_for_bit_like_one_process(swarm: RunningSwarm) -> None:
    check_that_all_is_equal(swarm, 3)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_a_swarm_of_any_size_answers_and_scores_bit_for_bit_like_one_process(nodes: int, tmp_path: Path) -> None:
    with running_swarm(nodes, tmp_path) as swarm:
        check_that_all_is_equal(swarm, nodes)


@pytest.mark.slow
def test_what_was_kept_evicted_or_sent_ahead_changes_no_token() -> None:
    """Long prompts with a common beginning, on nodes that have room for one of them and a little more."""
    store = real_store()
    beginning = " ".join(TEXTS[0]["text"].split()[:250])
    other = " ".join(TEXTS[1]["text"].split()[:250])
    requests = {
        name: Request(f"{text}\n\n{question}", max_tokens=MAX_TOKENS, sampling=sampling, exact=exact)
        for name, text, question, sampling, exact in (
            ("first", beginning, "What is this?", GREEDY, False),
            ("again", beginning, "What is this?", GREEDY, False),
            ("alike", beginning, "Repeat the first sentence word for word.", SEEDED, False),
            ("exact", beginning, "Repeat the first sentence word for word.", SEEDED, True),
            ("other", other, "What is this?", GREEDY, False),
            ("evicted", beginning, "What is this?", GREEDY, False),
        )
    }

    async def main() -> None:
        description = await describe_model(store, NAME)
        asker, executor = Asker(description, StageSettings(), PipelineSettings()), LaneExecutor()
        stage = await build_stage(store, description, Span(0, 30), StageSettings(sessions_max=1))
        expected = {
            name: (await asker.locally(stage, executor, request, lambda piece: None)).token_ids
            for name, request in requests.items()
        }
        stage.close()
        room = len(asker.prompt_ids(requests["alike"])) + MAX_TOKENS + 200
        nodes = open_local_swarm(NAME, 3, 10, lambda number: (*LISTEN, "--kv-positions", str(room)))
        async with nodes as swarm:
            await swarm.wait_serving()
            async with open_network(swarm.bootstrap_addresses) as peer:
                await wait_for_route(peer, description.id, 30)
                answers = {}
                for name, request in requests.items():
                    answers[name] = await asker.over_swarm(peer, request, lambda piece: None)
        assert {name: answer.token_ids for name, answer in answers.items()} == expected
        cached = {name: answer.cached_tokens for name, answer in answers.items()}
        assert cached["first"] == 0
        assert cached["other"] < 64, "two texts share the chat template at most"
        assert min(cached["again"], cached["alike"], cached["exact"]) >= 128
        assert cached["evicted"] < cached["again"]

    trio.run(main)


def test_answers_part_from_another_implementation_only_at_near_ties() -> None:
    """Where float32 hardly prefers one token to another, 8-bit activations fall as the processor rounds."""
    answers, _ = alone()
    equal = 0
    for case in REFERENCE["cases"]:
        if case["kind"] == "score":
            continue
        ours = answers[Request(case["messages"][0]["content"], max_tokens=MAX_TOKENS, sampling=GREEDY)]
        for token, theirs, margin in zip(ours, case["fp32_greedy_ids"], case["margins"], strict=False):
            if token != theirs:
                assert margin < NEAR_TIE, f"{case['name']}: {ours} is not {case['fp32_greedy_ids']}"
                break
            equal += 1
    assert equal >= 11, "so many tokens come before the first near ties"


def test_scores_agree_with_another_implementation() -> None:
    _, scores = alone()
    for scored, case in zip(scores, TEXTS, strict=True):
        assert scored.token_ids == case["token_ids"]
        agreeing = sum(ours == theirs for ours, theirs in zip(scored.top1, case["top1"], strict=True))
        assert agreeing / len(scored.top1) >= 0.95
        assert scored.mean_nll == pytest.approx(case["mean_nll"], rel=0.02)


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"enum": [1000, 1000000]}},
        "required": ["city", "inhabitants"],
        "additionalProperties": False,
    }
)


def test_an_answer_in_json_fits_its_schema_in_one_process_and_over_a_swarm(swarm: RunningSwarm) -> None:
    store = real_store()
    requests = [
        Request("Name a large city.", max_tokens=100, sampling=sampling, json_schema=SCHEMA)
        for sampling in (GREEDY, SEEDED, Sampling(temperature=0.8, seed=7, frequency_penalty=0.5))
    ]

    async def main(bootstrap: Sequence[str]) -> None:
        description = await describe_model(store, NAME)
        asker, executor = Asker(description, StageSettings(), PipelineSettings()), LaneExecutor()
        stage = await build_stage(store, description, Span(0, 30), StageSettings(sessions_max=1))
        expected = [await asker.locally(stage, executor, request, lambda piece: None) for request in requests]
        stage.close()
        async with open_network(bootstrap) as peer:
            await wait_for_route(peer, description.id, 30)
            for request, alone in zip(requests, expected, strict=True):
                answer = await asker.over_swarm(peer, request, lambda piece: None)
                assert answer.token_ids == alone.token_ids
                document = json.loads(answer.text)
                assert len(document["city"]) <= 20 and document["inhabitants"] in (1000, 1000000)
                assert answer.finish_reason == "stop"

    trio.run(main, swarm.bootstrap)
