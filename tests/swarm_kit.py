"""Peers over a network in memory, for tests of services, nodes and clients: toy stages whose rows are counted."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import trio

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import Generation
from p2pgrid.core.text import TextStream
from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.ids import ModelId, PeerId, SessionId, Span
from p2pgrid.net.memory_transport import MemoryNetwork
from p2pgrid.node.answer import Answer, Piece, Session, Show, generate
from p2pgrid.node.node import Node, Phase, Serving
from p2pgrid.node.peer import Peer, open_peer
from p2pgrid.services.local import LocalSession
from p2pgrid.services.owner_watch import OwnerWatch
from p2pgrid.services.worker import Worker
from p2pgrid.settings import LinkSettings, PipelineSettings
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Contact, Hop, Open, Sampling, SessionMessage, Step
from p2pgrid.wire.tensors import Floats, Ints, pack_ints
from tests.net.peers import Node as LinkedNode
from tests.net.peers import identity
from tests.toy_tokenizer import grammars

MODEL = ModelId("70" * 32)
LAYERS = 10
WHOLE = Span(0, LAYERS)
CONTEXT_MAX = 64
CHUNK = 8
WALL_EPOCH_S = 1_700_000_000.0
SESSION = SessionId("5e" * 16)
PROMPT = tuple((7 * i + 3) % 256 for i in range(20))
GREEDY = Sampling()
SEEDED = Sampling(temperature=0.9, top_p=0.95, seed=11)
QUICK = PipelineSettings(prefill_chunk=CHUNK)
SMALL_WINDOW = LinkSettings(window_bytes=4096)
"""Room for four small messages."""


def wall() -> float:
    return WALL_EPOCH_S + trio.current_time()


class CountedStage(ToyStage):
    """A toy stage that remembers what was run, which rows were given back, and whether it was closed."""

    def __init__(
        self,
        span: Span,
        rows: int = 4,
        layers: int = LAYERS,
        seed: int = 0,
        *,
        context_max: int = CONTEXT_MAX,
        kv_positions: int | None = None,
    ) -> None:
        super().__init__(span, layers, rows, context_max, seed=seed)
        self.kv_positions = kv_positions or rows * context_max
        self.taken: set[int] = set()
        self.released: list[int] = []
        self.steps = 0
        self.positions = 0
        self.batches: list[int] = []
        self.closed = 0
        self.tested = 1 + rows
        """Rows that a node's self-test gives back: one after its answers, all after its batch."""

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        self.steps += 1
        self.positions += len(tokens)
        self.taken.add(row)
        return super().step(row, position, tokens, hidden, logits)

    def step_rows(self, rows: Sequence[int], positions: Sequence[int], tokens: Ints, hidden: Floats | None) -> Floats:
        self.batches.append(len(rows))
        return super().step_rows(rows, positions, tokens, hidden)

    def release(self, row: int) -> None:
        self.released.append(row)
        super().release(row)

    def close(self) -> None:
        self.closed += 1
        super().close()


def cut(parts: int, layers: int = LAYERS) -> list[Span]:
    """`parts` spans that cover `layers`, as equal as they can be."""
    edges = [layers * i // parts for i in range(parts + 1)]
    return [Span(a, b) for a, b in pairwise(edges)]


@asynccontextmanager
async def joined(
    network: MemoryNetwork,
    number: int,
    *,
    link_settings: LinkSettings = LinkSettings(),  # noqa: B008 - frozen
    pipeline_settings: PipelineSettings = QUICK,
) -> AsyncIterator[Peer]:
    """A participant with the identity of that number."""
    own = identity(number)
    async with (
        network.open(own) as transport,
        open_peer(
            transport,
            own,
            wall=wall,
            rng=random.Random(number),
            link_settings=link_settings,
            pipeline_settings=pipeline_settings,
        ) as peer,
    ):
        yield peer


@asynccontextmanager
async def serving(peer: Peer, stage: Stage, executor: Executor) -> AsyncIterator[Worker]:
    """`stage` served by `peer`, as a node does it."""
    async with trio.open_nursery() as tasks:
        worker = Worker(MODEL, stage, executor, peer.links, peer.transport)
        await tasks.start(worker.run)
        peer.worker = worker
        yield worker
        tasks.cancel_scope.cancel()


def contact_of(peer: Peer) -> Contact:
    return Contact(peer.transport.peer, peer.transport.addresses)


def hop_of(peer: Peer, span: Span) -> Hop:
    return Hop(peer.transport.peer, span, peer.transport.addresses)


@dataclass
class Chain:
    """A client and the stages of one route, on one network."""

    network: MemoryNetwork
    client: Peer
    peers: list[Peer] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    stages: list[CountedStage] = field(default_factory=list)

    @property
    def route(self) -> tuple[Hop, ...]:
        return tuple(hop_of(peer, stage.span) for peer, stage in zip(self.peers, self.stages, strict=True))

    @property
    def rows_taken(self) -> list[int]:
        """At each stage, KV rows that are not free."""
        return [worker.sessions_open for worker in self.workers]

    async def cut_off_client(self) -> None:
        """Break every link of the client, and wait until all have noticed."""
        self.network.disconnect(self.client.transport.peer)
        await trio.sleep(0.1)


@asynccontextmanager
async def open_chain(
    parts: int | Sequence[Span],
    *,
    rows: int = 4,
    cost_s: float = 0.001,
    context_max: int = CONTEXT_MAX,
    kv_positions: int | None = None,
    network: MemoryNetwork | None = None,
    make: type[CountedStage] = CountedStage,
    executor: Callable[[], Executor] | None = None,
    link_settings: LinkSettings = LinkSettings(),  # noqa: B008 - frozen
    pipeline_settings: PipelineSettings = QUICK,
) -> AsyncIterator[Chain]:
    """A running chain of so many stages, or of these spans; a step takes `cost_s` unless there is an `executor`."""
    network = network or MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            joined(network, 900, link_settings=link_settings, pipeline_settings=pipeline_settings)
        )
        chain = Chain(network, client)
        for number, span in enumerate(cut(parts) if isinstance(parts, int) else parts):
            peer = await stack.enter_async_context(joined(network, number, link_settings=link_settings))
            stage = make(span, rows, context_max=context_max, kv_positions=kv_positions)
            runs = InlineExecutor(cost_s) if executor is None else executor()
            worker = await stack.enter_async_context(serving(peer, stage, runs))
            chain.peers.append(peer)
            chain.workers.append(worker)
            chain.stages.append(stage)
        yield chain


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────


def generation(
    prompt: Sequence[int] = PROMPT, max_tokens: int = 16, *, run_ahead: bool = True, context_max: int = CONTEXT_MAX
) -> Generation:
    return Generation(
        prompt, max_tokens=max_tokens, stop_tokens=(), context_max=context_max, chunk=CHUNK, run_ahead=run_ahead
    )


async def answer_of(
    session: Session,
    wanted: Generation,
    bytes_of: Callable[[int], bytes] = lambda token: b"",
    stop: Sequence[str] = (),
    show: Show = lambda piece: None,
    logprobs: int | None = None,
) -> Answer:
    return await generate(session, wanted, text=TextStream(stop), bytes_of=bytes_of, show=show, logprobs=logprobs)


def texts(into: list[str]) -> Show:
    """Collects what an answer shows, piece by piece; a token that made no text certain adds none."""

    def show(piece: Piece) -> None:
        if piece.text:
            into.append(piece.text)

    return show


async def alone(
    sampling: Sampling = GREEDY,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 16,
    seed: int = 0,
    context_max: int = CONTEXT_MAX,
    json_schema: str = "",
) -> list[int]:
    """The token ids that one process with all layers answers."""
    stage = CountedStage(WHOLE, 1, seed=seed, context_max=context_max)
    drawer = Drawer(sampling, prompt_length=len(prompt))
    drawer.grammar = await grammars().grammar(json_schema) if json_schema else None
    session = LocalSession(stage, InlineExecutor(), drawer)
    asked = generation(prompt, max_tokens, run_ahead=False, context_max=context_max)
    return (await answer_of(session, asked)).token_ids


# ── messages, one by one ─────────────────────────────────────────────────────────────────────────────────


def opening(route: tuple[Hop, ...], hop: int, session: SessionId = SESSION, sampling: Sampling = GREEDY) -> Open:
    return Open(session, 0, MODEL, route, hop, sampling)


def a_step(position: int, tokens: Sequence[int], *, want: bool = False, session: SessionId = SESSION) -> Step:
    return Step(session, 0, position, pack_ints(tokens), want="token" if want else "nothing")


async def open_by_hand(client: LinkedNode, route: tuple[Hop, ...], session: SessionId = SESSION) -> None:
    """A session on every stage of `route`; returns when all have said `Opened`."""
    before = len(client.arrived)
    for hop, stage in enumerate(route):
        await client.links.connect(Contact(stage.peer, stage.addresses))
        await client.links.send(stage.peer, opening(route, hop, session))
    with trio.fail_after(10):
        await client.arrival(before + len(route))


async def reply(client: LinkedNode) -> SessionMessage:
    """The next message that comes, taken off the list."""
    with trio.fail_after(30):
        await client.arrival(1)
    return client.arrived.pop(0)[1]


# ── adverts ──────────────────────────────────────────────────────────────────────────────────────────────


def serving_advert(peer: PeerId, span: Span | None = WHOLE, **changes: object) -> Advert:
    """What a node of `peer` would say of itself; discovery fills in what it knows better."""
    advert = Advert(
        peer=peer,
        addresses=(),
        model=MODEL,
        layers=LAYERS,
        state="serving",
        span=span,
        span_max=LAYERS,
        sequence=0,
        expires_at_s=0.0,
        step_ms=1.0,
        sessions_free=4,
    )
    return msgspec.structs.replace(advert, **changes)


# ── whole nodes ──────────────────────────────────────────────────────────────────────────────────────────


class Life:
    """A node that lives, and what was seen of it."""

    def __init__(self, peer: Peer, cost_s: float = 0.001) -> None:
        self.peer = peer
        self.cost_s = cost_s
        """Of a step from now on."""
        self.stop = trio.Event()
        self.phases: list[tuple[Phase, Span | None]] = []
        self.stages: list[CountedStage] = []
        self.ended = trio.Event()
        self._news = trio.Event()

    @property
    def names(self) -> list[Phase]:
        return [phase for phase, _ in self.phases]

    def on_phase(self, phase: Phase, span: Span | None) -> None:
        self.phases.append((phase, span))
        self._news.set()
        self._news = trio.Event()

    async def reached(self, phase: Phase) -> None:
        with trio.fail_after(30):
            while phase not in self.names:
                await self._news.wait()

    async def is_at(self, phase: Phase, span: Span | None = None) -> None:
        """Wait until it is in that phase, with those layers if they are given."""
        with trio.fail_after(30):
            while self.names[-1:] != [phase] or span not in (None, self.phases[-1][1]):
                await self._news.wait()


def node_of(
    life: Life,
    span: Span | None,
    *,
    span_max: int = LAYERS,
    make: Callable[[Span], CountedStage] = CountedStage,
    build_s: float = 0.3,
    executor: Executor | None = None,
    owner_watch: OwnerWatch | None = None,
) -> Node:
    """A node on the peer of `life`; building takes `build_s`, and so `make` fails only after that."""

    async def make_stage(chosen: Span) -> Stage:
        await trio.sleep(build_s)
        stage = make(chosen)
        life.stages.append(stage)
        return stage

    offer = Serving(MODEL, "toy", LAYERS, span, span_max)
    return Node(life.peer, offer, make_stage, executor or InlineExecutor(0.001), life.on_phase, grammars(), owner_watch)


@asynccontextmanager
async def living(
    network: MemoryNetwork,
    number: int,
    span: Span | None = None,
    *,
    rows: int = 4,
    span_max: int = LAYERS,
    cost_s: float = 0.001,
    context_max: int = CONTEXT_MAX,
    owner_watch: OwnerWatch | None = None,
) -> AsyncIterator[Life]:
    """A node from its joining on, whose steps take `cost_s`; the context cuts its life short unless it has ended."""
    async with joined(network, number) as peer, trio.open_nursery() as tasks:
        life = Life(peer, cost_s)
        node = node_of(
            life,
            span,
            span_max=span_max,
            make=lambda chosen: CountedStage(chosen, rows, context_max=context_max),
            executor=InlineExecutor(lambda: life.cost_s),
            owner_watch=owner_watch,
        )

        async def live() -> None:
            await node.run(life.stop)
            life.ended.set()

        tasks.start_soon(live)
        yield life
        tasks.cancel_scope.cancel()
