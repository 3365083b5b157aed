"""A swarm that loses nodes, and stays whole."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.processes import PYTHON, RunningSwarm, alive, wait_for


class Battered:
    """A swarm that loses nodes. Whoever takes the place of a lost one stays, so that every loss finds it whole."""

    def __init__(self, swarm: RunningSwarm, directory: Path) -> None:
        self.swarm = swarm
        self._directory = directory
        self._nodes: dict[int, dict[str, Any]] = {node["pid"]: node for node in swarm.state["nodes"]}
        self._spares: list[subprocess.Popen[bytes]] = []

    def holder(self, layer: int) -> dict[str, Any]:
        """The one node with that layer."""
        (node,) = (n for pid, n in self._nodes.items() if alive([pid]) and n["layers"][0] <= layer < n["layers"][1])
        return node

    @contextmanager
    def spare(self, layers: list[int]) -> Iterator[dict[str, Any]]:
        """One more node with these layers; afterwards it goes, unless it is the only one that is left."""
        state_file = self._directory / f"spare-{len(self._spares)}.json"
        span = f"{layers[0]}:{layers[1]}"
        command = ["node", "--layers", span, "--ephemeral", "--state", str(state_file), *self.swarm.joining]
        process = subprocess.Popen([*PYTHON, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._spares.append(process)
        wait_for(lambda: state_file.exists() and json.loads(state_file.read_text())["phase"] == "serving", 60, process)
        state = json.loads(state_file.read_text())
        before = [pid for pid, node in self._nodes.items() if node["layers"] == layers and alive([pid])]
        self._nodes[process.pid] = state
        try:
            yield state
        finally:
            if alive(before):
                process.terminate()
                process.wait(10)

    def end(self) -> None:
        for process in self._spares:
            process.terminate()
        for process in self._spares:
            process.wait(10)


def busiest(pids: list[int]) -> int:
    """The process that computes."""
    before = {pid: sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids}
    time.sleep(0.5)
    return max(pids, key=lambda pid: sum(psutil.Process(pid).cpu_times()[:2]) - before[pid])
