"""Real `p2pgrid` processes for end-to-end tests, each ended on every exit."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from p2pgrid.swarm.processes import end_members, start_member, wait_for_phase

PYTHON = [sys.executable, "-m", "p2pgrid"]
START_S_MAX = 90.0


@dataclass
class RunningSwarm:
    """A `p2pgrid swarm --keep` and what its state file says."""

    process: subprocess.Popen[bytes]
    state_file: Path

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state_file.read_text())
        return found

    @property
    def bootstrap(self) -> list[str]:
        return list(self.state["bootstrap"])

    @property
    def joining(self) -> list[str]:
        """The options of a command that joins it."""
        return [option for address in self.bootstrap for option in ("--bootstrap", address)]

    def node_with_layer(self, layer: int) -> dict[str, Any]:
        return next(n for n in self.state["nodes"] if n["layers"][0] <= layer < n["layers"][1])

    def pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]


def wait_for(what: Any, deadline_s: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until `what()` is true. Fails the test after `deadline_s`, or when `process` has ended."""
    give_up_at = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < give_up_at, f"not within {deadline_s:.0f} s"
        assert process is None or process.poll() is None, f"it ended with status {process.returncode}"
        time.sleep(0.05)


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@contextmanager
def running_swarm(nodes: int, directory: Path) -> Iterator[RunningSwarm]:
    """A swarm of `nodes` processes that serves the real model; ends with Ctrl-C, and must leave nothing behind."""
    state_file = directory / "swarm.json"
    log = directory / "swarm.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*PYTHON, "swarm", "--nodes", str(nodes), "--keep", "--state", str(state_file)],
            stdout=sink,
            stderr=sink,
        )
    swarm = RunningSwarm(process, state_file)
    children: list[int] = []
    try:
        wait_for(state_file.exists, START_S_MAX, process)
        children = swarm.pids()
        yield swarm
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert process.returncode == 0, log.read_text()
    assert alive(children) == []


def run(*command: str, timeout_s: float = 90.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one `p2pgrid` command to its end."""
    return subprocess.run(
        [*PYTHON, *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
        check=False,
    )


@asynccontextmanager
async def gateway_to(bootstrap: Sequence[str]) -> AsyncIterator[str]:
    """A `p2pgrid serve` that joined through `bootstrap`, and its URL."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-gateway-") as directory:
        joining = [option for address in bootstrap for option in ("--bootstrap", address)]
        command = ["serve", "--listen", "127.0.0.1:0", *joining]
        gateway = await start_member("gateway", command, Path(directory))
        try:
            state = await wait_for_phase(gateway, "serving")
            assert state.gateway is not None
            yield state.gateway
        finally:
            await end_members([gateway])
