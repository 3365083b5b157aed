"""Real processes: found by hand, killed, frozen, shouted at, and told to stop."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from p2pgrid.settings import PipelineSettings
from tests.e2e.battered import Battered, busiest
from tests.e2e.processes import PYTHON, RunningSwarm, alive, run, running_swarm, wait_for
from tests.real_model import NAME, real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(240)]


def test_a_client_without_the_model_is_answered(swarm: RunningSwarm, tmp_path: Path) -> None:
    """Its home is empty: manifest and tokenizer come from the swarm, the weights never."""
    question = ("--max-tokens", "24", "What is the capital of France?")
    alone = run("generate", "--local", *question)
    asked = run("generate", *swarm.joining, *question, P2PGRID_HOME=str(tmp_path))
    assert asked.returncode == 0, asked.stderr
    assert len(asked.stdout) > 20
    assert asked.stdout == alone.stdout, "what one process says here: a near tie, which falls as the processor rounds"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 1_000_000


def test_the_document_of_an_answer_says_who_did_what(swarm: RunningSwarm) -> None:
    options = ["--max-tokens", "8", "--json", "Why is the sky blue?"]
    document = json.loads(run("generate", *swarm.joining, *options).stdout)
    assert document["completion_tokens"] == len(document["token_ids"]) == 8
    assert document["finish_reason"] == "length"
    assert [hop["layers"] for hop in document["route"]] == [[0, 10], [10, 20], [20, 30]]
    assert {hop["peer_id"] for hop in document["route"]} == {node["peer_id"] for node in swarm.state["nodes"]}
    assert document["ttft_s"] > 0
    assert document["decode_tokens_per_s"] > 0


def test_status_shows_every_node_and_that_all_layers_are_covered(swarm: RunningSwarm) -> None:
    shown = run("status", *swarm.joining, "--json")
    assert shown.returncode == 0, shown.stderr
    (model,) = json.loads(shown.stdout)["models"]
    assert (model["model"], model["served"], model["missing"]) == (NAME, True, [])
    assert sorted(node["layers"] for node in model["nodes"]) == [[0, 10], [10, 20], [20, 30]]
    assert {node["state"] for node in model["nodes"]} == {"serving"}


def test_a_node_with_ten_layers_stays_below_280_mb(swarm: RunningSwarm) -> None:
    text = "word " * 600
    run("generate", *swarm.joining, "--max-tokens", "4", "--raw", text)
    for node in swarm.state["nodes"]:
        assert psutil.Process(node["pid"]).memory_info().rss < 280e6


def test_garbage_and_a_frame_header_of_4_gib_on_its_port_leave_a_node_serving(swarm: RunningSwarm) -> None:
    for node in swarm.state["nodes"]:
        port = int(node["addresses"][0].split("/tcp/")[1].split("/")[0])
        for garbage in (
            b"\xff" * 4096,
            b"\x13/multistream/1.0.0\n" + b"\xff" * 64,
            b"\xff\xff\xff\xff",
            os.urandom(20_000),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(garbage)
    asked = run("generate", *swarm.joining, "--max-tokens", "4", "Hello")
    assert asked.returncode == 0, asked.stderr
    assert alive([node["pid"] for node in swarm.state["nodes"]]) == [node["pid"] for node in swarm.state["nodes"]]


QUESTION = ["--max-tokens", "400", "--raw", "Once upon a time", "--json"]


@pytest.fixture(scope="module")
def calm(swarm: RunningSwarm) -> str:
    """What is answered to QUESTION when nothing happens."""
    return str(json.loads(run("generate", *swarm.joining, *QUESTION).stdout)["text"])


def ask_and_strike(swarm: RunningSwarm, pid_of: Callable[[], int], blow: signal.Signals) -> tuple[str, str, float]:
    """Strike a process while a client reads its answer: what the client wrote and said, and how long after."""
    command = ["generate", *swarm.joining, "--max-tokens", "400", "--raw", "Once upon a time"]
    with subprocess.Popen([*PYTHON, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as client:
        assert client.stdout is not None
        wrote = client.stdout.read(20)
        os.kill(pid_of(), blow)
        hit_at = time.monotonic()
        # It must be read all the while: what the client writes must not be what it waits for.
        rest, said = client.communicate(timeout=150)  # in 15, when nothing else is done here
    return (wrote + rest).decode(), said.decode(), time.monotonic() - hit_at


@pytest.mark.alone
@pytest.mark.parametrize(
    ("layer", "blow"),
    [
        (0, signal.SIGKILL),
        (15, signal.SIGSTOP),
        pytest.param(29, signal.SIGKILL, marks=pytest.mark.slow),  # tests/e2e/test_gateway.py has it as well
    ],
)
def test_a_stage_lost_in_mid_answer_is_replaced_and_the_answer_is_the_undisturbed_one(
    layer: int, blow: signal.Signals, battered: Battered, calm: str
) -> None:
    """`p2pgrid bench recovery` strikes each of them both ways."""
    victim = battered.holder(layer)
    # Either of the two may be asked.
    with battered.spare(victim["layers"]) as spare:
        pids = [victim["pid"], spare["pid"]]
        try:
            wrote, said, _ = ask_and_strike(battered.swarm, lambda: busiest(pids), blow)
        finally:
            for pid in alive(pids):
                os.kill(pid, signal.SIGCONT)
    assert wrote == calm + "\n"
    assert "after 1 recovery]" in said, said


@pytest.mark.slow
@pytest.mark.alone
def test_without_a_spare_the_request_ends_with_the_missing_layers_in_time(tmp_path: Path) -> None:
    """A stage in the middle; tests/node/test_recovering.py has the others."""
    real_store()
    with running_swarm(3, tmp_path) as swarm:
        victim = swarm.node_with_layer(15)
        _, said, took_s = ask_and_strike(swarm, lambda: int(victim["pid"]), signal.SIGKILL)
    start, stop = victim["layers"]
    assert victim["peer_id"] in said
    assert f"layers {start}:{stop} of 0:30 are missing" in said
    assert said.startswith("p2pgrid: stage ")
    assert said.count("\n") == 1
    assert took_s < PipelineSettings().recover_s_max + 10


@pytest.mark.slow
@pytest.mark.alone
def test_a_frozen_stage_may_come_back_before_patience_ends(swarm: RunningSwarm, calm: str) -> None:
    victim = swarm.node_with_layer(15)

    def freeze_for_a_while() -> int:
        thaw = threading.Timer(6, os.kill, (victim["pid"], signal.SIGCONT))
        thaw.start()
        return int(victim["pid"])

    wrote, said, _ = ask_and_strike(swarm, freeze_for_a_while, signal.SIGSTOP)
    assert wrote == calm + "\n", said


@pytest.mark.alone
def test_a_killed_swarm_command_takes_all_its_processes_with_it(tmp_path: Path) -> None:
    real_store()
    state_file = tmp_path / "swarm.json"
    process = subprocess.Popen(
        [*PYTHON, "swarm", "--nodes", "2", "--keep", "--state", str(state_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # what it cannot tidy up any more goes with the test
    )
    try:
        wait_for(state_file.exists, 90, process)
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(children) == 3
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not alive(children), 5)


@pytest.mark.alone
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_node_told_to_stop_leaves_within_2_s(how: signal.Signals, swarm: RunningSwarm, tmp_path: Path) -> None:
    state_file = tmp_path / "node.json"
    command = ["node", "--layers", "10:20", "--ephemeral", "--state", str(state_file), *swarm.joining]
    process = subprocess.Popen([*PYTHON, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: state_file.exists() and json.loads(state_file.read_text())["phase"] == "serving", 60, process)
    process.send_signal(how)
    told_at = time.monotonic()
    _, said = process.communicate(timeout=15)
    assert time.monotonic() - told_at < 2
    assert process.returncode == 0
    assert "Traceback" not in said
    assert json.loads(state_file.read_text())["phase"] == "left"


def test_an_uncovered_model_names_the_missing_layers(tmp_path: Path) -> None:
    state_file = tmp_path / "node.json"
    command = ["node", "--layers", "0:12", "--ephemeral", "--state", str(state_file)]
    process = subprocess.Popen([*PYTHON, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: state_file.exists() and json.loads(state_file.read_text())["phase"] == "serving", 60, process)
        (address,) = json.loads(state_file.read_text())["addresses"]
        asked = run("generate", "--bootstrap", address, "Hello")
    finally:
        process.terminate()
        process.wait(10)
    assert asked.returncode == 1
    assert "layers 12:30 of 0:30 are missing" in asked.stderr
    assert asked.stderr.count("\n") == 1
