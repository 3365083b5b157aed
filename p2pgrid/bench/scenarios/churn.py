"""Requests while nodes are killed and others join every few seconds, and what is left when all is over."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from p2pgrid.bench.hearing import Heard, hear
from p2pgrid.bench.leftovers import Files, held_rows
from p2pgrid.bench.processes import Crew, open_crew, state_of
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.scenarios.recovery import REPLICAS, serving, spans_of, start_serving
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.ids import PeerId, Span
from p2pgrid.node.client import ModelDescription, wait_for_route
from p2pgrid.node.wiring import describe_model, model_store, open_network

ANSWER_TOKENS = 16
REQUEST_S_MAX = 30.0
"""A request that takes longer has not finished."""
PROMPTS = (
    "The owner comes home and",
    "A chain of machines can",
    "At night, when nobody drives,",
    "Of all the things that a small model can say,",
)
SYSTEM = "swarm"
FINISHED_SHARE_MIN = 0.995
LEFT = ("processes_left", "files_left", "kv_rows_left", "kv_positions_left")
"""Of each there must be none."""
PATHS_SHOWN_MAX = 5


@dataclass(frozen=True)
class Plan:
    """How long, how often something happens, and how many clients ask all the while."""

    length_s: float
    every_s: float
    clients: int


FULL = Plan(length_s=120.0, every_s=5.0, clients=4)
"""Of each repeat."""
QUICK = Plan(length_s=12.5, every_s=2.5, clients=2)


@dataclass
class Tally:
    """What happened so far."""

    asked: int = 0
    request_s: list[float] = field(default_factory=list)
    """Of each request that finished."""
    equal: int = 0
    """Of those, answers that are the undisturbed ones."""
    failures: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    joins: int = 0
    started_s: float = 0.0
    ended_s: float = 0.0

    def add(self, heard: Heard, undisturbed: Sequence[int]) -> None:
        """A request that ended by itself; it finished when nothing went wrong."""
        self.asked += 1
        self.ended_s = max(self.ended_s, heard.ended_s)
        if heard.error is not None:
            self.failures[type(heard.error).__name__] += 1
            return
        self.request_s.append(heard.ended_s - heard.asked_s)
        self.equal += heard.token_ids == list(undisturbed)

    def give_up(self, now_s: float) -> None:
        """A request that took too long."""
        self.asked += 1
        self.ended_s = max(self.ended_s, now_s)
        self.failures[f"no answer in {REQUEST_S_MAX:.0f} s"] += 1

    def keep(self, bench: Bench) -> None:
        finished = len(self.request_s)
        if self.asked:
            bench.keep(SYSTEM, "finished_share", "share", [finished / self.asked])
            bench.keep(SYSTEM, "requests_per_s", "1/s", [finished / (self.ended_s - self.started_s)])
        if finished:
            bench.keep(SYSTEM, "equal_share", "share", [self.equal / finished])
            bench.keep(SYSTEM, "request_s", "s", self.request_s)
        bench.note(self.summary())

    def summary(self) -> str:
        """One line for people."""
        why = ", ".join(f"{count} × {name}" for name, count in sorted(self.failures.items()))
        failed = f"; not finished: {why}" if why else ""
        return (
            f"{self.kills} nodes killed and {self.joins} started: {len(self.request_s)} of {self.asked} requests"
            f" finished, {self.equal} of them with the undisturbed answer{failed}"
        )


def whom_to_kill(spans: Mapping[str, Span], rng: random.Random) -> str | None:
    """One of the nodes (name → span) whose layers another one serves too; None when there is none.

    Nobody could answer without any, so that nothing would be learnt from it.
    """
    counts = Counter(spans.values())
    spare = sorted(name for name, span in spans.items() if counts[span] > 1)
    return rng.choice(spare) if spare else None


async def run(bench: Bench) -> None:
    options = bench.options
    plan = QUICK if options.quick else replace(FULL, length_s=FULL.length_s * options.repeat)
    description = await describe_model(model_store(), options.model)
    spans = spans_of(description.manifest.layers, options.nodes)
    tally = Tally()
    files = Files()
    before = files.paths()
    try:
        async with open_crew() as crew:
            await start_serving(crew, options.model, spans * REPLICAS)
            await _ask_in_churn(bench, crew, description, plan, tally)
            await _count_rows(bench, crew, description)
        bench.note(crew.last_note())
        bench.keep(SYSTEM, "processes_left", "processes", [float(len(crew.left_behind()))])
        _count_files(bench, files.left_since(before))
    finally:
        tally.keep(bench)
        for what in LEFT:
            bench.require(what, SYSTEM, at_most=0.0)
        bench.require("finished_share", SYSTEM, at_least=FINISHED_SHARE_MIN)
        bench.require("equal_share", SYSTEM, at_least=1.0)
    bench.note(
        f"{len(spans)} stages, {REPLICAS} nodes each; for {plan.length_s:.0f} s, every {plan.every_s:g} s, a node is"
        f" killed or one takes its place; {plan.clients} clients ask for {ANSWER_TOKENS} tokens each time"
    )


async def _ask_in_churn(bench: Bench, crew: Crew, description: ModelDescription, plan: Plan, tally: Tally) -> None:
    ready: list[int] = []
    begin = trio.Event()

    async def ask_on(client: int) -> None:
        prompt = Tokenizer(description.tokenizer).prompt(PROMPTS[client % len(PROMPTS)])
        async with open_network(crew.bootstrap) as peer:
            await wait_for_route(peer, description.id, description.manifest.layers)
            calm = await hear(peer, description, prompt, ANSWER_TOKENS)
            if calm.error is not None:
                raise calm.error
            ready.append(client)
            if len(ready) == plan.clients:
                tally.started_s = trio.current_time()
                begin.set()
            await begin.wait()
            while trio.current_time() < tally.started_s + plan.length_s:
                with trio.move_on_after(REQUEST_S_MAX) as patience:
                    tally.add(await hear(peer, description, prompt, ANSWER_TOKENS), calm.token_ids)
                if patience.cancelled_caught:
                    tally.give_up(trio.current_time())

    async with trio.open_nursery() as churning:
        async with trio.open_nursery() as clients:
            for client in range(plan.clients):
                clients.start_soon(ask_on, client)
            await begin.wait()
            churning.start_soon(_churn, bench, crew, plan, tally)
        churning.cancel_scope.cancel()


async def _churn(bench: Bench, crew: Crew, plan: Plan, tally: Tally) -> None:
    """Kill a node, start one in its place, and so on in turn."""
    rng = random.Random(1)
    missing: list[Span] = []
    events = int(plan.length_s / plan.every_s)
    for event in range(events):
        bench.progress(event, events)
        if missing:
            await crew.start_node(bench.options.model, missing.pop())
            tally.joins += 1
        else:
            spans = serving(crew)
            name = whom_to_kill(spans, rng)
            for victim in (member for member in crew.living if member.name == name):
                await crew.kill(victim)
                missing.append(spans[victim.name])
                tally.kills += 1
        await trio.sleep(plan.every_s)
    bench.progress(events, events)


async def _count_rows(bench: Bench, crew: Crew, description: ModelDescription) -> None:
    """What the nodes that live hold now that all clients are gone."""
    states = [state_of(member, "serving") for member in crew.living]
    nodes = [PeerId(state.peer_id) for state in states if state is not None]
    async with open_network(crew.bootstrap) as peer:
        held = await held_rows(peer, description.id, nodes)
    if held is None:
        bench.note("not all nodes that live could be asked what they hold")
        return
    bench.keep(SYSTEM, "kv_rows_left", "rows", [float(held.rows)])
    bench.keep(SYSTEM, "kv_positions_left", "positions", [float(held.positions)])
    bench.note(f"{len(nodes)} nodes lived to the end, and were asked for the KV rows that they hold")


def _count_files(bench: Bench, left: Sequence[Path]) -> None:
    bench.keep(SYSTEM, "files_left", "files", [float(len(left))])
    if left:
        more = ", …" if len(left) > PATHS_SHOWN_MAX else ""
        bench.note(f"files that belong to nobody: {', '.join(map(str, left[:PATHS_SHOWN_MAX]))}{more}")


SCENARIO = Named("churn", "requests while nodes are killed and others join every few seconds", run)
