"""Real processes: the last holder of some layers is killed, and another node takes them over."""

import json
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from p2pgrid.node.state_file import ProcessState
from p2pgrid.swarm.local_swarm import LocalSwarm, open_local_swarm
from tests.e2e.processes import run
from tests.real_model import NAME, real_store

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(240)]

HEALED_S_MAX = 15.0
KNOWN_S_MAX = 10.0
ERROR_S_MAX = 15.0
COMMAND_S = 3.0
"""About what a command takes on a machine that does nothing else; where it takes longer, everything may."""


def bootstrap_options(swarm: LocalSwarm) -> list[str]:
    return [option for address in swarm.bootstrap_addresses for option in ("--bootstrap", address)]


async def command(*arguments: str) -> Any:
    return await trio.to_thread.run_sync(lambda: run(*arguments), abandon_on_cancel=True)


async def slowness(swarm: LocalSwarm) -> float:
    """By what the limits here are to be multiplied, now."""
    began_at = time.monotonic()
    await status(swarm)
    return max(1.0, (time.monotonic() - began_at) / COMMAND_S)


async def status(swarm: LocalSwarm) -> dict[str, Any]:
    done = await command("status", *bootstrap_options(swarm), "--model", NAME, "--json")
    assert done.stdout, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    return dict(model)


def spans(nodes: Sequence[ProcessState]) -> list[tuple[int, int]]:
    return sorted(node.layers for node in nodes if node.layers is not None)


def only_holder(nodes: Sequence[ProcessState]) -> ProcessState:
    return next(node for node in nodes if node.layers is not None and spans(nodes).count(node.layers) == 1)


async def wait_for(swarm: LocalSwarm, span: tuple[int, int]) -> None:
    """Until a node serves those layers."""
    nodes = swarm.nodes()
    while not any(node.layers == span and node.phase == "serving" for node in nodes):
        nodes = await swarm.wait_changed(nodes)


def test_a_replica_of_other_layers_takes_the_place_of_a_killed_node() -> None:
    real_store()
    trio.run(_kill_and_wait)


async def _kill_and_wait() -> None:
    async with open_local_swarm(NAME, 4, span_max=10) as swarm:
        await swarm.wait_serving()
        assert len(set(spans(swarm.nodes()))) == 3
        before = await status(swarm)
        assert before["health"] == "degraded"
        assert len(before["reasons"]) == 1
        assert "are served by one node only" in before["reasons"][0]
        assert before["canary_age_s"] is not None
        assert 0 < before["tokens_per_s"] + 1 < before["tokens_per_s_bound"]

        question = ("generate", *bootstrap_options(swarm), "--max-tokens", "8", "What is the capital of France?")
        expected = await command(*question)
        assert expected.returncode == 0, expected.stderr
        healed_s_max = HEALED_S_MAX * await slowness(swarm)
        victim = only_holder(swarm.nodes())
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        assert (await status(swarm))["health"] != "ready"
        assert victim.layers is not None
        with trio.fail_after(healed_s_max - (time.monotonic() - killed_at)):
            await wait_for(swarm, victim.layers)
        answer = await command(*question)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout == expected.stdout
        assert time.monotonic() - killed_at < healed_s_max
        assert len(set(spans(swarm.nodes()))) == 3


def test_a_model_that_cannot_be_healed_is_unavailable_and_says_which_layers() -> None:
    real_store()
    trio.run(_freeze_and_ask)


async def _freeze_and_ask() -> None:
    async with open_local_swarm(NAME, 3, span_max=10) as swarm:
        await swarm.wait_serving()
        slower = await slowness(swarm)
        victim = swarm.nodes()[1]
        assert victim.layers is not None
        missing = f"layers {victim.layers[0]}:{victim.layers[1]} of 0:30 are missing"
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            stopped_at = time.monotonic()
            while (found := await status(swarm))["health"] != "unavailable":
                assert time.monotonic() - stopped_at < KNOWN_S_MAX * slower
            assert time.monotonic() - stopped_at < KNOWN_S_MAX * slower
            assert missing in found["reasons"][0]
            asked_at = time.monotonic()
            answer = await command("generate", *bootstrap_options(swarm), "--max-tokens", "8", "Hello")
            assert time.monotonic() - asked_at < ERROR_S_MAX * slower
            assert answer.returncode == 1
            assert missing in answer.stderr
        finally:
            os.kill(victim.pid, signal.SIGCONT)
