"""One session as its client sees it: open on every stage of a route, steps go in, answers come out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.core.prefix import block_keys, join_keys
from p2pgrid.core.recovery import CLIENT, Feed, Held, Recovery, Transcript, kept_hops, plan_feeds
from p2pgrid.errors import Overloaded, PeerError, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Links
from p2pgrid.services.pipeline.holders import Holders
from p2pgrid.settings import PipelineSettings
from p2pgrid.wire.messages import (
    ROUTE_HOPS_MAX,
    Busy,
    Contact,
    Failed,
    Hop,
    Lost,
    Moved,
    Open,
    Opened,
    OutOfSync,
    Replay,
    Sampling,
    Scores,
    Step,
    Token,
    WireChoice,
)
from p2pgrid.wire.tensors import pack_ints

Answer = Token | Scores
Heard = Opened | Token | Scores | OutOfSync | Busy | Failed | Lost | Moved


class HandedOver(PeerUnavailable):
    """A stage left, and gave what it held to a node that takes its place in `route`: go on along that one."""

    def __init__(self, message: str, peer: PeerId, route: tuple[Hop, ...]) -> None:
        super().__init__(message, peer)
        self.route = route


class Stalled(PeerUnavailable):
    """No answer came for long, although every link of the route is alive."""


@dataclass(frozen=True)
class Terms:
    """What a client asks of every stage of a session; see the fields of `Open`."""

    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: tuple[int, ...] = ()
    prompt: Sequence[int] = ()
    """What stages still hold of it need not be computed again; what follows it is the answer, which penalties count."""
    positions: int = 0
    cache_scope: str = ""
    wire: WireChoice = "fp32"
    exact: bool = False
    relayed: bool = False
    logprobs: int | None = None
    json_schema: str = ""


class PipelineSession:
    """A session on the stages of `route`. Made by `Pipeline.open`, ended by its context."""

    recoveries: tuple[Recovery, ...] = ()
    """By itself a session stays where it is; `node.recovering` moves it."""

    def __init__(
        self,
        links: Links,
        session: SessionId,
        model: ModelId,
        route: tuple[Hop, ...],
        terms: Terms,
        settings: PipelineSettings,
    ) -> None:
        self.id = session
        self.route = route
        self.relayed = terms.relayed
        self.epoch = 0
        self.cached = 0
        """Positions of the prompt that every stage held when the session was opened."""
        self.holders = Holders(links, session)
        self._links = links
        self._model = model
        self._terms = terms
        self._settings = settings
        self._prefix = join_keys(block_keys(terms.prompt[:-1]))  # the last token always runs
        self._transcript = Transcript(terms.prompt, settings.prefill_chunk)
        self._held: dict[int, Held] = {}
        self._all_opened = trio.Event()
        self._failure: PeerError | None = None
        # Bounded by what was asked for: one answer a step or granted position.
        self._answers: deque[Answer] = deque()
        self._news = trio.Event()

    # ── opening, and going on elsewhere ──────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Open the session on every stage. Raises PeerUnavailable, PeerMisbehaved, Overloaded naming the peer."""
        with trio.move_on_after(self._settings.open_s_max) as deadline:
            async with trio.open_nursery() as tasks:
                for hop, stage in enumerate(self.route):
                    tasks.start_soon(self._open_one, hop, stage)
                await self._all_opened.wait()
                tasks.cancel_scope.cancel()
        if deadline.cancelled_caught:
            late = min(set(range(len(self.route))) - self._held.keys(), default=0)
            raise PeerUnavailable(
                f"{self.name(late)} was not open within {self._settings.open_s_max:.0f} s", self.route[late].peer
            )
        self._check()
        if self.epoch == 0:
            self.cached = min(held.length for held in self._held.values())

    async def reroute(self, route: tuple[Hop, ...]) -> int:
        """Go on along another route, as if nothing had happened: what stages of it lack is sent to them again.

        Returns how many positions that are. Raises as `open`; then the session may be rerouted once more.
        """
        kept = kept_hops(self.route, route)
        self.epoch += 1
        self.route = route
        self._failure = None
        self._held = {}
        self._all_opened = trio.Event()
        self.holders.leave_all_but({stage.peer for stage in route})
        await self.open()
        held = [self._held[hop] for hop in range(len(route))]
        start = self._transcript.resume_at(min((held[hop].length for hop in kept), default=0))
        feeds = plan_feeds(held, start)
        await self._refill({feed.hop: feed for feed in feeds}, start)
        return sum(feed.stop - feed.start for feed in feeds)

    async def _open_one(self, hop: int, stage: Hop) -> None:
        terms = self._terms
        try:
            await self._links.connect(Contact(stage.peer, stage.addresses))
            opening = Open(
                self.id,
                self.epoch,
                self._model,
                self.route,
                hop,
                terms.sampling,
                terms.stop_tokens,
                terms.relayed,
                terms.positions,
                self._prefix,
                terms.cache_scope,
                terms.wire,
                terms.exact,
                terms.logprobs,
                len(terms.prompt),
                terms.json_schema if hop == len(self.route) - 1 else "",
            )
            self.holders.asked(stage.peer)
            await self._links.send(stage.peer, opening)
        except PeerUnavailable as error:
            self.fail(PeerUnavailable(f"{self.name(hop)} cannot be reached: {error}", stage.peer))

    async def _refill(self, feeds: dict[int, Feed], start: int) -> None:
        """Have every stage hold positions `[0, start)`, then send again what was not answered."""
        for hop in range(len(self.route)):
            feed = feeds.get(hop)
            asked = Replay(self.id, self.epoch)
            if feed is not None:
                asked = Replay(self.id, self.epoch, feed.start, feed.stop, feed.through)
            await self._send_to(hop, asked)
        own = feeds.get(CLIENT)
        if own is not None:
            for step in self._transcript.between(own.start, own.stop):
                await self._send_step(step, own.through)
        for step in self._transcript.since(start):
            await self._send_step(step)

    # ── steps and answers ────────────────────────────────────────────────────────────────────────────────

    async def send(self, step: SendStep) -> None:
        """To stage 0. Raises what ended the session: PeerUnavailable, PeerMisbehaved, Overloaded."""
        self._transcript.sent(step)
        self._check()
        await self._send_step(step)

    async def _send_step(self, step: SendStep, through: int = ROUTE_HOPS_MAX) -> None:
        message = Step(
            self.id,
            self.epoch,
            step.position,
            pack_ints(step.tokens),
            want=step.want,
            targets=pack_ints(step.targets),
            until=step.until,
            through=through,
        )
        await self._send_to(0, message)

    async def relay(self, peer: PeerId, step: Step) -> None:
        """Hidden states of the stage on `peer`, on their way to the next one. Raises what ended the session."""
        for hop, stage in enumerate(self.route[:-1]):
            if stage.peer == peer:
                await self._send_to(hop + 1, step)

    async def _send_to(self, hop: int, message: Step | Replay) -> None:
        self._check()
        try:
            await self._links.send(self.route[hop].peer, message)
        except PeerUnavailable as error:
            self._check()
            raise PeerUnavailable(f"{self.name(hop)} cannot be reached: {error}", self.route[hop].peer) from error

    async def receive(self, patience_s: float | None = None) -> Answer:
        """The next answer of the last stage. Raises what ended the session; Stalled when none came for `patience_s`
        (None = as long as the settings allow), and then it may still come.

        What came before the session ended is given first.
        """
        if not self._answers:
            limit_s = self._settings.token_s_max if patience_s is None else patience_s
            with trio.move_on_after(limit_s) as patience:
                while not self._answers:
                    self._check()
                    self._news = trio.Event()
                    await self._news.wait()
            if patience.cancelled_caught:
                raise Stalled(f"the pipeline gave no token for {limit_s:.0f} s", self.route[-1].peer)
        return self._answers.popleft()

    # ── what is heard ────────────────────────────────────────────────────────────────────────────────────

    def fail(self, error: PeerError) -> None:
        """The session cannot go on along this route. The first reason counts."""
        if self._failure is None:
            self._failure = error
            self._all_opened.set()
            self._news.set()

    def take(self, peer: PeerId, message: Heard) -> None:
        """A message for this session. What comes from a peer that may not say it is passed over."""
        match message:
            case Token() | Scores():
                if peer == self.route[-1].peer and self._failure is None:
                    self._take_answer(message)
                return
            case _:
                if not (message.hop < len(self.route) and self.route[message.hop].peer == peer):
                    return
        where = self.name(message.hop)
        match message:
            case Opened(cached=length, replays_from=replays_from):
                self._held[message.hop] = Held(length, replays_from)
                if len(self._held) == len(self.route):
                    self._all_opened.set()
            case OutOfSync(length=length):
                self.fail(PeerMisbehaved(f"{where} is out of step: it holds {length} positions", peer))
            case Busy(retry_after_s=after):
                self.fail(Overloaded(f"{where} has no room now; try again in {after:.1f} s", after, peer))
            case Failed(reason=reason):
                self.fail(PeerUnavailable(f"{where} ended the answer: {reason}", peer))
            case Moved(to=to):
                self._moved(message.hop, to)
            case Lost(peer=lost, reason=reason):
                following = (message.hop + 1) % len(self.route)
                if lost == self.route[following].peer:  # a stage is believed about its neighbour alone
                    self.fail(PeerUnavailable(f"{where} lost {self.name(following)}: {reason}", lost))

    def _moved(self, hop: int, to: Hop) -> None:
        leaving = self.route[hop]
        if to.span == leaving.span and all(to.peer != stage.peer for stage in self.route):
            self.holders.inherited(to)
            route = (*self.route[:hop], to, *self.route[hop + 1 :])
            self.fail(HandedOver(f"{self.name(hop)} handed over to {to.peer}", leaving.peer, route))

    def _take_answer(self, answer: Answer) -> None:
        if isinstance(answer, Token):
            self._transcript.drawn(answer.position, answer.token)
        else:
            self._transcript.scored(answer.position)
        self._answers.append(answer)
        self._news.set()

    def name(self, hop: int) -> str:
        stage = self.route[hop]
        return f"stage {hop} (layers {stage.span} on {stage.peer})"

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
