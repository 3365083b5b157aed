"""A swarm in memory: real discovery, links, workers and pipelines; toy stages; time and chance from the seed."""

import hashlib
import random

import trio

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import Generation
from p2pgrid.core.text import TextStream
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.engine.stage import Stage
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.errors import P2pgridError
from p2pgrid.ids import ModelId, Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.answer import Piece, generate
from p2pgrid.node.client import open_session
from p2pgrid.node.node import Node, Phase, Serving
from p2pgrid.node.peer import Peer, open_peer
from p2pgrid.services.local import LocalSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.services.worker import SUSPENDED_S_MAX
from p2pgrid.sim.plan import Outcome, Plan, Report
from p2pgrid.sim.seeded import run_seeded
from p2pgrid.sim.striking import Member, Strikes
from p2pgrid.sim.watched_stage import WatchedStage
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.signing import Identity

MODEL = ModelId(hashlib.sha256(b"toy").hexdigest())
VOCAB = 256
CONTEXT_MAX = 512
CHUNK = 8
WALL_EPOCH_S = 1_700_000_000.0
"""The simulated day begins here; a date, so that sequence numbers look like real ones."""
CANARY_S_MAX = 15.0
"""A canary token that gets stuck has given everything back by then."""
REQUEST_S_MAX = 90.0
"""Longer than any request waits for whatever it may be: one that has not ended by then never will."""


def simulate(seed: int, plan: Plan | None = None) -> Report:
    """Run a whole swarm from one seed."""
    world = World(seed, plan or Plan())
    return run_seeded(seed, world.run)


def undisturbed(seed: int, plan: Plan | None = None) -> list[list[int]]:
    """The answers that one process with all layers gives to the same requests."""
    chosen = plan or Plan()

    async def main(_: random.Random) -> list[list[int]]:
        stage = ToyStage(Span(0, chosen.layers), chosen.layers, 1, CONTEXT_MAX, seed=seed, vocab=VOCAB)
        answers: list[list[int]] = []
        for i in range(chosen.requests):
            prompt, sampling = _request(seed, i, chosen)
            session = LocalSession(stage, InlineExecutor(), Drawer(sampling, prompt_length=len(prompt)))
            answer = await generate(
                session, _generation(prompt, chosen, False), text=TextStream(), bytes_of=_bytes_of, show=_ignore
            )
            answers.append(answer.token_ids)
        return answers

    return run_seeded(seed, main)


class World:
    """One simulation in the making."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed = seed
        self.plan = plan
        self.trace: list[str] = []
        self.moves: list[tuple[float, int, Span | None]] = []
        self._client = Identity(self._seed_bytes("client"))
        self._members = [Member(Identity(self._seed_bytes(f"node {i}")), plan.step_s) for i in range(plan.nodes)]

    async def run(self, rng: random.Random) -> Report:
        plan = self.plan
        network = MemoryNetwork(rng, plan.latency_s, plan.latency_s / 2)
        strikes = Strikes(network, self._members, frozenset({self._client.peer}))
        outcomes = [Outcome(0.0) for _ in range(plan.requests)]
        async with trio.open_nursery() as tasks:
            for i in range(plan.nodes):
                tasks.start_soon(self._node, i, network, strikes, random.Random(rng.random()))
            for fault in plan.faults:
                tasks.start_soon(strikes.bring_about, fault, self.note)
            client_rng = random.Random(rng.random())
            async with (
                network.open(self._client) as transport,
                open_peer(transport, self._client, wall=_wall, rng=client_rng) as peer,
            ):
                strikes.hear_twice(peer)
                with trio.move_on_at(plan.ask_at_s + REQUEST_S_MAX):
                    async with trio.open_nursery() as requests:
                        for i, outcome in enumerate(outcomes):
                            requests.start_soon(self._request, peer, i, outcome)
                asked_for = peer.pipeline.sessions_open
            await trio.sleep(1)  # farewells are on their way
            leaked = asked_for + await self._sessions_left()
            spans = [None if member.node is None else member.node.span for member in self._members]
            known = [self._known_to(peer) for peer in self._reachable()]
            report = Report(self.seed, outcomes, spans, leaked, trio.current_time(), self.trace, self.moves, known)
            tasks.cancel_scope.cancel()
        return report

    def note(self, what: str) -> None:
        self.trace.append(f"{trio.current_time():.6f} {what}")

    async def _node(self, i: int, network: MemoryNetwork, strikes: Strikes, rng: random.Random) -> None:
        plan, member = self.plan, self._members[i]
        identity = member.identity
        executor = InlineExecutor(lambda: member.step_s)

        async def make_stage(span: Span) -> Stage:
            await trio.sleep(rng.uniform(0.2, 1.5))  # loading takes what it takes
            return WatchedStage(span, plan.layers, 4, CONTEXT_MAX, seed=self.seed, vocab=VOCAB)

        def on_phase(phase: Phase, span: Span | None) -> None:
            self.note(f"node {i} {phase} {span}")
            if phase == "moving":
                self.moves.append((trio.current_time(), i, span))

        span_max = plan.span_maxes[i] if plan.span_maxes else plan.span_max or -(-2 * plan.layers // plan.nodes)
        span = plan.spans[i] if plan.spans else None
        serving = Serving(MODEL, "toy", plan.layers, span, min(span_max, plan.layers))
        await trio.sleep(rng.uniform(0, 0.5))
        with member.scope:
            async with (
                network.open(identity) as transport,
                open_peer(transport, identity, wall=_wall, rng=rng) as peer,
            ):
                member.peer = peer
                strikes.hear_twice(peer)
                member.node = Node(peer, serving, make_stage, executor, on_phase)
                await member.node.run(member.stop)
        member.peer = None

    async def _request(self, peer: Peer, i: int, outcome: Outcome) -> None:
        plan = self.plan
        prompt, sampling = _request(self.seed, i, plan)
        await trio.sleep_until(plan.ask_at_s)
        outcome.asked_at_s = trio.current_time()

        def show_token(token: int) -> bytes:
            self.note(f"request {i} token {token}")
            outcome.token_ids.append(token)
            return b""

        try:
            async with open_session(peer, MODEL, plan.layers, Terms(sampling, prompt=prompt)) as session:
                generation = _generation(prompt, plan, True)
                answer = await generate(session, generation, text=TextStream(), bytes_of=show_token, show=_ignore)
                outcome.error, outcome.recoveries = None, len(answer.recoveries)
        except P2pgridError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.ended_at_s = trio.current_time()
        self.note(f"request {i} ended {outcome.error}")

    async def _sessions_left(self) -> int:
        """Sessions that some stage still has a row for, and those that some node as a client still waits in; what is on
        its way, a canary token or a row that was handed over to no purpose, is given its time.
        """
        give_up_at_s = trio.current_time() + max(CANARY_S_MAX, SUSPENDED_S_MAX) + 1
        while True:
            held = sum(map(_sessions_of, self._reachable()))
            if not held or trio.current_time() > give_up_at_s:
                return held
            await trio.sleep(0.1)

    def _reachable(self) -> list[Peer]:
        """Of the nodes that live."""
        return [member.peer for member in self._members if member.peer is not None and not member.out_of_reach]

    def _known_to(self, peer: Peer) -> set[int]:
        known = {peer.transport.peer, *(advert.peer for advert in peer.view.adverts(MODEL))}
        return {i for i, member in enumerate(self._members) if member.identity.peer in known}

    def _seed_bytes(self, who: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {who}".encode()).digest()


def _sessions_of(peer: Peer) -> int:
    return peer.pipeline.sessions_open + (0 if peer.worker is None else peer.worker.sessions_open)


def _request(seed: int, i: int, plan: Plan) -> tuple[list[int], Sampling]:
    rng = random.Random(f"{seed} request {i}")
    prompt = [rng.randrange(VOCAB) for _ in range(plan.prompt_tokens)]
    # The last stage of every other one must remember the answer, also when it was replaced.
    penalty = 1.5 * (i % 2)
    return prompt, Sampling(temperature=plan.temperature, seed=rng.getrandbits(32), frequency_penalty=penalty)


def _generation(prompt: list[int], plan: Plan, run_ahead: bool) -> Generation:
    return Generation(
        prompt,
        max_tokens=plan.max_tokens,
        stop_tokens=(),
        context_max=CONTEXT_MAX,
        chunk=CHUNK,
        run_ahead=run_ahead,
    )


def _wall() -> float:
    return WALL_EPOCH_S + trio.current_time()


def _bytes_of(token: int) -> bytes:
    return b""


def _ignore(piece: Piece) -> None:
    pass
