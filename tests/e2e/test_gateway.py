"""A real swarm behind a real gateway, asked by OpenAI's own client as it is."""

import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import trio

from p2pgrid.gateway.access import Access
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.life import open_gateway
from p2pgrid.gateway.models import Models
from p2pgrid.ids import ModelId
from p2pgrid.node.client import ModelDescription
from p2pgrid.node.state_file import read_state
from p2pgrid.node.wiring import describe_model, open_network, resolve_model
from tests.e2e.battered import Battered, busiest
from tests.e2e.processes import PYTHON, RunningSwarm, run, wait_for
from tests.hermes import TEMPLATE
from tests.real_model import NAME, real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(240)]

QUESTION = "Why is the sky blue?"
START_S_MAX = 30.0
STOP_S_MAX = 5.0
"""A machine that is busy with other tests is slow; alone it is less than two."""


@contextmanager
def running_gateway(swarm: RunningSwarm, directory: Path) -> Iterator[str]:
    """The URL of a `p2pgrid serve` in front of that swarm; it must end in order."""
    state = directory / "gateway.json"
    log = directory / "gateway.log"
    command = [*PYTHON, "serve", *swarm.joining, "--listen", "127.0.0.1:0", "--state", str(state)]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        wait_for(state.exists, START_S_MAX, process)
        found = read_state(state)
        assert found is not None and found.gateway is not None
        yield found.gateway
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text()
    assert QUESTION not in log.read_text(), "prompts are not logged"


@pytest.fixture(scope="module")
def url(swarm: RunningSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_gateway(swarm, tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with connected(url) as found:
        yield found


@contextmanager
def connected(url: str) -> Iterator[openai.OpenAI]:
    """A client, once the model is ready."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        wait_for(lambda: _ready(found), START_S_MAX)
        yield found


def _ready(client: openai.OpenAI) -> bool:
    return [model.id for model in client.models.list()] == [NAME]


def ask(client: openai.OpenAI, **fields: object) -> str:
    reply = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24, **fields
    )
    return reply.choices[0].message.content or ""


def test_the_client_gets_what_one_process_says_streamed_or_not(client: openai.OpenAI) -> None:
    alone = run("generate", "--local", "--max-tokens", "24", QUESTION).stdout.rstrip("\n")
    assert ask(client) == alone
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_completion_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == alone
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_log_probabilities_are_those_of_the_model(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=5,
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 8
    for token in logprobs.content:
        assert token.top_logprobs[0].token == token.token
        assert sum(math.exp(each.logprob) for each in token.top_logprobs) <= 1.0001


def test_an_answer_fits_the_schema_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "Name a city, and how many people live there."}],
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )
    found = json.loads(reply.choices[0].message.content or "")
    assert isinstance(found["city"], str)
    assert isinstance(found["people"], int)


async def test_a_call_that_is_required_comes_and_its_result_is_answered(swarm: RunningSwarm) -> None:
    """The model as it is, behind a gateway that knows it with another chat template: its own has no tools."""

    async def describe(model: ModelId) -> ModelDescription:
        known = await describe_model(real_store(), model)
        return replace(known, tokenizer=msgspec.structs.replace(known.tokenizer, chat_template=TEMPLATE))

    async with open_network(swarm.bootstrap) as peer:
        models = Models(peer, {resolve_model(real_store(), NAME): NAME}, describe)
        gateway = Gateway(peer, models, Access(time.time))
        async with open_gateway(gateway, "127.0.0.1", 0) as url:
            await trio.to_thread.run_sync(_call_and_answer, url)


def _call_and_answer(url: str) -> None:
    city = {"type": "string", "pattern": "^[A-Z][a-z]{2,15}$"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    weather = {"type": "function", "function": {"name": "weather", "description": "of today", "parameters": parameters}}
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        wait_for(lambda: _ready(client), START_S_MAX)
        ask = partial(client.chat.completions.create, model=NAME, temperature=0, max_tokens=60, tools=[weather])
        choice = ask(messages=asked, tool_choice="required").choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather"
        assert re.fullmatch(city["pattern"], json.loads(call.function.arguments)["city"])

        chunks = [chunk.choices[0] for chunk in ask(messages=asked, tool_choice="required", stream=True)]
        (streamed,) = [each for chunk in chunks for each in chunk.delta.tool_calls or []]
        assert streamed.function.arguments == call.function.arguments
        assert chunks[-1].finish_reason == "tool_calls"

        result = {"role": "tool", "tool_call_id": call.id, "content": "rain, 4 degrees"}
        answer = ask(messages=[*asked, choice.message, result], tool_choice="none").choices[0]
        assert answer.finish_reason in ("stop", "length")
        assert answer.message.content


def test_an_echoed_prompt_scores_as_with_the_command(
    client: openai.OpenAI, swarm: RunningSwarm, tmp_path: Path
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 5
    (tmp_path / "text").write_text(text)
    reply = client.completions.create(model=NAME, prompt=text, echo=True, logprobs=1, max_tokens=0)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    mean_nll = -sum(logprobs.token_logprobs[1:]) / (len(logprobs.token_logprobs) - 1)
    scored = run("score", "--text-file", str(tmp_path / "text"), "--local")
    assert f"likelihood {mean_nll:.4f}" in scored.stderr
    assert reply.choices[0].text == text


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x"}], temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="x")


def test_an_answer_that_its_client_leaves_frees_every_row(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": QUESTION}], max_tokens=4000, stream=True
    )
    next(iter(stream))
    assert _running(client) == 1
    stream.close()
    wait_for(lambda: _running(client) == 0, 5.0)


def _running(client: openai.OpenAI) -> float:
    page = client.get("../metrics", cast_to=str)
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("p2pgrid_answers_running"))
    return sum(float(value) for value in lines.values())


@pytest.mark.alone
def test_a_stage_that_is_killed_under_a_stream_changes_nothing_of_it(battered: Battered, tmp_path: Path) -> None:
    wanted = run("generate", "--local", "--max-tokens", "120", QUESTION).stdout.rstrip("\n")
    holder = battered.holder(29)
    with (
        battered.spare(holder["layers"]) as spare,
        running_gateway(battered.swarm, tmp_path) as url,
        connected(url) as client,
    ):
        text = ""
        stream = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=120,
            stream=True,
        )
        killed = False
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if len(text) > 60 and not killed:
                os.kill(busiest([holder["pid"], spare["pid"]]), signal.SIGKILL)
                killed = True
            last = chunk
        assert killed
        assert text == wanted
        how = last.choices[0].model_extra["p2pgrid"]
        assert len(how["recoveries"]) == 1
