"""What becomes of an answer when one of its stages is killed, or frozen, in the middle of it."""

import math
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Literal

import trio

from p2pgrid.bench.hearing import Heard, equal_share, hear
from p2pgrid.bench.processes import Crew, open_crew, state_of
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import PeerId, Span
from p2pgrid.node.client import ModelDescription, wait_for_route
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.swarm.processes import Member, wait_for_phase

SHARES = (0.25, 0.5, 0.75)
PROMPT_TOKENS = 128
ANSWER_TOKENS = 128
QUICK_ANSWER_TOKENS = 64
REPLICAS = 2
"""Nodes of each stage: one to be killed and one to take over."""
SERVE_S_MAX = 60.0
KNOWN_S_MAX = 10.0
"""How long the client may take to hear of new nodes before it asks all the same."""
PROMPT = "Once upon a time there was a small machine that stood in a parked car and had nothing to do all night. "

Blow = Literal["kill", "stop"]
SYSTEMS: Mapping[Blow, str] = {"kill": "swarm", "stop": "swarm, frozen"}
"""SIGKILL breaks a node's connections at once, SIGSTOP none: only silence tells."""
GAP_MEDIAN_S_MAX: Mapping[Blow, float] = {"kill": 1.0, "stop": 3.5}
GAP_P95_S_MAX = 2.5
"""Of kills."""


@dataclass(frozen=True)
class Case:
    """Strike the stage at this place of the route once this share of the answer has come."""

    stage: int
    share: float
    blow: Blow = "kill"


@dataclass(frozen=True)
class Outcome:
    """What the client saw."""

    recovered: bool
    after_s: float
    """Recovered: the longest wait for a token since the blow. Else: from the blow to the client's error."""
    tokens_equal: float
    """The share of the tokens that came which are those of the undisturbed answer."""
    answered_share: float
    """The share of the tokens asked for that came."""


@dataclass
class Outcomes:
    """All outcomes so far, by their case."""

    seen: list[tuple[Case, Outcome]] = field(default_factory=list)

    def of(self, blow: Blow, share: float | None = None) -> list[Outcome]:
        return [o for case, o in self.seen if case.blow == blow and share in (None, case.share)]

    def keep(self, bench: Bench) -> None:
        """Rows for each blow and share, what is demanded of all of them, and the plain count of completed answers."""
        for blow, system in SYSTEMS.items():
            for share in SHARES:
                outcomes = self.of(blow, share)
                at = f"@{round(100 * share)}"
                bench.keep(system, f"recovered{at}", "share", [float(o.recovered) for o in outcomes])
                bench.keep(system, f"gap_s{at}", "s", [o.after_s for o in outcomes if o.recovered])
                bench.keep(system, f"error_s{at}", "s", [o.after_s for o in outcomes if not o.recovered])
                bench.keep(system, f"tokens_equal{at}", "share", [o.tokens_equal for o in outcomes])
                bench.keep(system, f"answered_share{at}", "share", [o.answered_share for o in outcomes])
            gaps_s = [o.after_s for o in self.of(blow) if o.recovered]
            bench.keep(system, "gap_median_s", "s", [median(gaps_s)] if gaps_s else [])
            bench.keep(system, "gap_p95_s", "s", [largest_but_5_percent(gaps_s)] if gaps_s else [])
            complete = [float(o.recovered and o.tokens_equal == o.answered_share == 1.0) for o in self.of(blow)]
            bench.keep(system, "complete_and_equal", "share", complete)
            bench.require("complete_and_equal", system, at_least=1.0)
            bench.require("gap_median_s", system, at_most=GAP_MEDIAN_S_MAX[blow])
        bench.require("gap_p95_s", SYSTEMS["kill"], at_most=GAP_P95_S_MAX)
        bench.note(self.summary())

    def summary(self) -> str:
        """One line for people."""
        if not self.seen:
            return "no stage was lost: the scenario ended before"
        completed = sum(outcome.recovered for _, outcome in self.seen)
        stages = sorted({case.stage for case, _ in self.seen})
        counts = [
            f"stage {stage}: {sum(o.recovered for c, o in self.seen if c.stage == stage)} of"
            f" {sum(c.stage == stage for c, _ in self.seen)}"
            for stage in stages
        ]
        return f"{completed} of {len(self.seen)} answers were completed after a stage was lost ({', '.join(counts)})"


def largest_but_5_percent(samples: Sequence[float]) -> float:
    """The smallest sample that at least 95 % of the samples do not exceed: of fewer than 20 the largest."""
    return sorted(samples)[math.ceil(0.95 * len(samples)) - 1]


def cases(stages: int, rounds: int) -> list[Case]:
    """Every share and blow once a round, each round at other stages: `stages` rounds strike every stage each way."""
    return [
        Case((i + turn) % stages, share, blow)
        for turn in range(rounds)
        for i, share in enumerate(SHARES)
        for blow in SYSTEMS
    ]


def spans_of(layers: int, stages: int) -> list[Span]:
    """The layers cut into `stages` spans, as equal as they can be. Raises BadInput when there are too few."""
    if not 1 <= stages <= layers:
        raise BadInput(f"--nodes {stages}: give 1 to {layers} (the model has {layers} layers)")
    return [Span(layers * i // stages, layers * (i + 1) // stages) for i in range(stages)]


def outcome_of(heard: Heard, struck_s: float, undisturbed: Sequence[int]) -> Outcome:
    """`undisturbed` is the whole answer when nothing happens; times on one clock."""
    recovered = heard.error is None
    times_s = [max([t for t in heard.times_s if t <= struck_s], default=struck_s)]
    times_s += [t for t in heard.times_s if t > struck_s]
    gap_s = max((b - a for a, b in pairwise(times_s)), default=0.0)
    return Outcome(
        recovered=recovered,
        after_s=gap_s if recovered else heard.ended_s - struck_s,
        tokens_equal=equal_share(heard.token_ids, undisturbed),
        answered_share=len(heard.token_ids) / len(undisturbed),
    )


def prompt_of(description: ModelDescription) -> list[int]:
    return Tokenizer(description.tokenizer).prompt(PROMPT * PROMPT_TOKENS)[:PROMPT_TOKENS]


async def run(bench: Bench) -> None:
    options = bench.options
    description = await describe_model(model_store(), options.model)
    spans = spans_of(description.manifest.layers, options.nodes)
    outcomes = Outcomes()
    try:
        async with open_crew() as crew:
            await start_serving(crew, options.model, spans * REPLICAS)
            async with open_network(crew.bootstrap) as client:
                await _strike_in_turn(Scene(bench, crew, client, description, spans), outcomes)
        bench.note(crew.last_note())
    finally:
        outcomes.keep(bench)
    bench.note(f"{len(spans)} stages, each with a spare node when one of its nodes is lost")


async def start_serving(crew: Crew, model: str, spans: Sequence[Span]) -> None:
    """A node for each of `spans`, returning when all serve. Raises LocalFault when one does not."""
    with trio.move_on_after(SERVE_S_MAX) as deadline:
        async with trio.open_nursery() as waiting:
            for span in spans:
                waiting.start_soon(wait_for_phase, await crew.start_node(model, span), "serving")
    if deadline.cancelled_caught:
        raise LocalFault(f"nodes did not serve within {SERVE_S_MAX:.0f} s: is the machine overloaded?")


def serving(crew: Crew) -> dict[str, Span]:
    """The layers of each node that lives and serves, by the name of its process."""
    states = {member.name: state_of(member, "serving") for member in crew.living}
    return {name: Span(*state.layers) for name, state in states.items() if state is not None and state.layers}


def missing_nodes(present: Iterable[Span], spans: Sequence[Span]) -> list[Span]:
    """What to start so that each of `spans` has all its replicas again."""
    counts = Counter(present)
    return [span for span in spans for _ in range(REPLICAS - counts[span])]


@dataclass(frozen=True)
class Scene:
    """Serving nodes that may be lost, and a client."""

    bench: Bench
    crew: Crew
    client: Peer
    description: ModelDescription
    spans: list[Span]

    async def fill_up(self, stage: int) -> None:
        """Have a spare for that stage, which the client knows. Whoever is missing elsewhere starts along with it."""
        missing = missing_nodes(serving(self.crew).values(), self.spans)
        if self.spans[stage] in missing:
            await start_serving(self.crew, self.bench.options.model, missing)
        model, span = self.description.id, self.spans[stage]

        def known() -> bool:
            return [a.span for a in self.client.view.adverts(model, "serving")].count(span) >= REPLICAS

        await self.client.discovery.wait_until(model, known, KNOWN_S_MAX)
        await wait_for_route(self.client, model, self.description.manifest.layers)

    def node_of(self, peer: PeerId) -> Member | None:
        """The process that serves as `peer`."""
        for member in self.crew.living:
            state = state_of(member, "serving")
            if state is not None and state.peer_id == peer:
                return member
        return None


async def _strike_in_turn(scene: Scene, outcomes: Outcomes) -> None:
    bench, client, description = scene.bench, scene.client, scene.description
    prompt = prompt_of(description)
    tokens = QUICK_ANSWER_TOKENS if bench.options.quick else ANSWER_TOKENS
    await wait_for_route(client, description.id, description.manifest.layers)
    calm = await hear(client, description, prompt, tokens)
    if calm.error is not None:
        raise calm.error
    todo = cases(len(scene.spans), bench.options.repeat)
    for i, case in enumerate(todo):
        bench.progress(i, len(todo))
        await scene.fill_up(case.stage)
        striker = _Striker(scene, case, int(tokens * case.share))
        heard = await hear(client, description, prompt, tokens, striker.on_token)
        if striker.victim is None:
            why = heard.error or "its process was not found"
            bench.note(
                f"stage {case.stage} was not struck at {case.share:.0%} of an answer, which does not count: {why}"
            )
            continue
        await scene.crew.kill(striker.victim)
        outcomes.seen.append((case, outcome_of(heard, striker.at_s, calm.token_ids)))
    bench.progress(len(todo), len(todo))


class _Striker:
    """Kills or freezes the process of a stage at a token of an answer."""

    def __init__(self, scene: Scene, case: Case, at_token: int) -> None:
        self.victim: Member | None = None
        self.at_s = 0.0
        self._scene = scene
        self._case = case
        self._at_token = at_token

    def on_token(self, heard: Heard) -> None:
        if self.victim is not None or len(heard.token_ids) < self._at_token:
            return
        self.victim = self._scene.node_of(heard.route[self._case.stage].peer)
        if self.victim is not None:
            self.victim.process.send_signal(signal.SIGKILL if self._case.blow == "kill" else signal.SIGSTOP)
            self.at_s = trio.current_time()


SCENARIO = Named("recovery", "a stage is killed or frozen in the middle of an answer, at every place of the route", run)
