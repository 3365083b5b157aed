"""Eight times as many clients as there is room for: who is served, how long they wait, what memory it takes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil
import trio

from p2pgrid.bench.lineup import PromptMaker, prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.swarm_system import SwarmSystem, open_swarm_system
from p2pgrid.core.placement import kv_row_bytes
from p2pgrid.errors import Overloaded, P2pgridError
from p2pgrid.swarm.local_swarm import LISTEN

CLIENTS = 64
ROOM_FOR = 8
PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
QUICK_PROMPT_TOKENS = 32
QUICK_ANSWER_TOKENS = 16
BEYOND_BUDGET_BYTES_MAX = 64 * 1024 * 1024
"""What a node may take beside keys and values: the work of its steps, and its sessions' names and links."""
SYSTEM = "swarm"
LOOK_S = 0.1


class Length(NamedTuple):
    """Of a request, in tokens."""

    prompt: int
    answer: int


@dataclass
class Tally:
    """What became of the clients. Times in seconds since all began."""

    completed_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    """For the first token."""
    busy: int = 0
    failed: int = 0

    def figures(self) -> Figures:
        found: Figures = {
            "served_requests": (float(len(self.completed_s)), "requests"),
            "busy_requests": (float(self.busy), "requests"),
            "failed_requests": (float(self.failed), "requests"),
        }
        if self.completed_s:
            found["wait_s_max"] = (max(self.waited_s), "s")
            fairness = max(self.completed_s) / statistics.median(self.completed_s)
            found["completion_max_over_median"] = (fairness, "times")
        return found


async def run(bench: Bench) -> None:
    maker = await prompt_maker(bench)
    quick = bench.options.quick
    length = Length(QUICK_PROMPT_TOKENS, QUICK_ANSWER_TOKENS) if quick else Length(PROMPT_TOKENS, ANSWER_TOKENS)
    positions = ROOM_FOR * (length.prompt + length.answer)
    bench.require("failed_requests", SYSTEM, at_most=0)
    bench.require("rss_beyond_budget_bytes", SYSTEM, at_most=BEYOND_BUDGET_BYTES_MAX)

    def arguments_of(number: int) -> Sequence[str]:
        return [*LISTEN, "--kv-positions", str(positions)]

    async with open_swarm_system(bench.options.model, bench.options.nodes, arguments_of) as swarm:
        span_layers = -(-swarm.model.manifest.layers // bench.options.nodes)
        budget_bytes = kv_row_bytes(swarm.model.manifest, span_layers, positions)
        for pair in range(-1, bench.options.repeat):
            bench.progress(pair + 1, bench.options.repeat + 1)
            clients = ROOM_FOR if pair < 0 else CLIENTS

            async def measure(pair: int = pair, clients: int = clients) -> Figures:
                figures = await _ask_together(bench, swarm, maker, clients, length, pair)
                beyond = figures["rss_growth_bytes"][0] - budget_bytes
                return figures | {"rss_beyond_budget_bytes": (max(beyond, 0.0), "bytes")}

            await bench.sample(SYSTEM, pair, measure)
    bench.note(
        f"{CLIENTS} clients ask at once for {length.prompt} + {length.answer} positions each, of nodes that hold"
        f" {positions} ({budget_bytes / 1e6:.1f} MB); a client who finds no room asks again until its patience ends"
    )


async def _ask_together(
    bench: Bench, swarm: SwarmSystem, maker: PromptMaker, clients: int, length: Length, pair: int
) -> Figures:
    tally = Tally()
    began_s = trio.current_time()

    async def ask(client: int) -> None:
        try:
            answer = await swarm.ask(maker.prompt(length.prompt, 1000 * (pair + 1) + client), length.answer)
        except Overloaded:
            tally.busy += 1
        except P2pgridError as error:
            tally.failed += 1
            bench.note(f"a request failed: {error}")
        else:
            tally.waited_s.append(answer.ttft_s)
            tally.completed_s.append(trio.current_time() - began_s)

    before = _rss_bytes(swarm.pids())
    most = dict(before)
    async with trio.open_nursery() as watching:

        async def watch() -> None:
            while True:
                for pid, nbytes in _rss_bytes(swarm.pids()).items():
                    most[pid] = max(most.get(pid, 0), nbytes)
                await trio.sleep(LOOK_S)

        watching.start_soon(watch)
        async with trio.open_nursery() as asking:
            for client in range(clients):
                asking.start_soon(ask, client)
        watching.cancel_scope.cancel()
    growth = {pid: nbytes - before.get(pid, nbytes) for pid, nbytes in most.items()}
    worst = max(growth, key=lambda pid: growth[pid])
    return tally.figures() | {
        "rss_before_bytes": (float(before[worst]), "bytes"),
        "rss_growth_bytes": (float(growth[worst]), "bytes"),
    }


def _rss_bytes(pids: Sequence[int]) -> dict[int, int]:
    return {pid: int(psutil.Process(pid).memory_info().rss) for pid in pids if psutil.pid_exists(pid)}


SCENARIO = Named("overload", "64 clients where there is room for 8: served, told to wait, memory", run)
