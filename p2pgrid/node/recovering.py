"""A session that survives its stages: when one is lost in mid-answer, it goes on along another route."""

from collections.abc import Awaitable, Callable, Collection

import structlog
import trio

from p2pgrid.core.generation import SendStep
from p2pgrid.core.recovery import Recovery, left_out_by_turns
from p2pgrid.core.routing import PATIENCE_S_MIN, explain_no_route, patience_s, route_ms
from p2pgrid.errors import NoRoute, Overloaded, PeerError, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.node.peer import Peer
from p2pgrid.services.pipeline import HandedOver, PipelineSession, Stalled, Terms
from p2pgrid.wire.messages import Hop, Scores, Token

log = structlog.get_logger()

ATTEMPTS_MAX = 20
"""Routes that are tried without an answer in between: of many nodes that hang at once, one that works may come late."""
PAUSE_S = 0.1
"""Before a peer that failed is asked again because nobody else is left; twice as long each time."""
DIAL_S_MAX = 1.0
"""A peer that made no link while another one kept us waiting for longer is left out as well."""

Check = Callable[[], Awaitable[None]]
"""Raises when an answer cannot go on anywhere, so that no peer is to blame."""


async def no_check() -> None:
    """Any answer can go on."""


class RecoveringSession:
    """`session`, moved to other stages of `model` as often as it must be. Belongs to one task.

    Relayed sessions are not moved: their stages cannot reach each other, so none could fill another one.
    """

    def __init__(
        self, peer: Peer, model: ModelId, layers: int, session: PipelineSession, terms: Terms, check: Check = no_check
    ) -> None:
        self.recoveries: tuple[Recovery, ...] = ()
        self._peer = peer
        self._model = model
        self._layers = layers
        self._session = session
        self._terms = terms
        self._check = check
        self._lost: dict[PeerId, None] = {}
        """Left out as long as there is anybody else; who failed last comes last."""
        self._busy: set[PeerId] = set()
        self._answers = 0
        self._attempts = 0
        """Since the last answer."""
        self._why: PeerError | None = None
        """What came first since the last answer: of all that goes wrong then it says most."""
        self._give_up_at_s = 0.0
        self._unanswered = 0
        """Positions sent since the last answer."""
        self._silent_s = 0.0
        """How long the next answer has been waited for along this route."""

    @property
    def id(self) -> SessionId:
        return self._session.id

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._session.route

    @property
    def cached(self) -> int:
        return self._session.cached

    async def send(self, step: SendStep) -> None:
        """To stage 0. Raises NoRoute, the PeerError that nothing could be done about, or what the check raises."""
        self._unanswered += len(step.tokens)
        try:
            await self._session.send(step)
        except PeerError as error:
            await self._recover(error)  # which sends the step too

    async def receive(self) -> Token | Scores:
        """The next answer of the last stage. Raises as `send`."""
        while True:
            wait_s = self._wait_s()
            try:
                answer = await self._session.receive(wait_s)
            except Stalled as stall:
                self._silent_s += wait_s
                await self._wait_on(stall)
            except PeerError as error:
                await self._recover(error)
            else:
                self._answers += 1
                self._attempts = self._unanswered = 0
                self._silent_s = 0.0
                return answer

    def _wait_s(self) -> float:
        """Until we look again why no answer comes: twice as long each time, and not past the moment at which the stages
        are to be asked, nor past the longest silence.
        """
        ends_s = [self._peer.settings.token_s_max]
        if self._silent_s:  # no promise is shorter than the first look, which every answer waits for
            ends_s.append(self._promised_s())
        left_s = [end_s - self._silent_s for end_s in ends_s if end_s > self._silent_s]
        return min([max(PATIENCE_S_MIN, self._silent_s), *left_s])

    def _promised_s(self) -> float:
        """How long the stages' adverts may have the next answer take."""
        token_ms = route_ms(self._peer.adverts(self._model), self._session.route)
        return patience_s(token_ms, self._unanswered)

    async def _wait_on(self, stall: Stalled) -> None:
        """Longer than the adverts promise, or longer than any token may take, is too long.

        Then go on along the same route: nothing is computed again but the one step that is waited for, and a stage
        whose step never ends does not answer. A slow one does, and is given what its advert asks for.
        """
        promised_s = self._promised_s()
        longest_s = self._peer.settings.token_s_max
        if self._silent_s >= (longest_s if self._session.relayed else max(longest_s, promised_s)):
            raise PeerUnavailable(f"the pipeline gave no token for {self._silent_s:.0f} s", stall.peer)
        if self._session.relayed or self._silent_s < min(promised_s, longest_s):
            return
        log.debug("no token for long: the stages are asked", waited_s=self._silent_s)
        try:
            await self._session.reroute(self._session.route)
        except PeerError as error:
            await self._recover(error)

    async def _recover(self, error: PeerError) -> None:
        if error.peer == self.route[-1].peer:
            await self._check()
        if self._session.relayed:
            raise error
        began_s = trio.current_time()
        if not self._attempts:
            self._why = error
            self._give_up_at_s = began_s + self._peer.settings.recover_s_max
        lost: dict[PeerId, None] = {}
        while True:
            log.debug("the answer goes on elsewhere", error=str(error))
            self._attempts += 1
            if error.peer is None or self._attempts > ATTEMPTS_MAX:
                raise self._why or error
            self._leave_out(error)
            lost[error.peer] = None
            if trio.current_time() >= self._give_up_at_s and self._untried_route() is None:
                raise self._why or error
            route = error.route if isinstance(error, HandedOver) else await self._find_route(error)
            tried_s = trio.current_time()
            try:
                replayed = await self._session.reroute(route)
            except PeerError as again:
                error = again
                if trio.current_time() - tried_s > DIAL_S_MAX:
                    self._lost |= {hop.peer: None for hop in route if not self._peer.links.is_up(hop.peer)}
            else:
                took_s = trio.current_time() - began_s
                self._silent_s = 0.0
                self.recoveries += (Recovery(self._answers, tuple(lost), took_s, replayed),)
                return

    def _leave_out(self, error: PeerError) -> None:
        assert error.peer is not None
        if isinstance(error, Overloaded):
            self._busy.add(error.peer)
        else:
            self._lost.pop(error.peer, None)
            self._lost[error.peer] = None
            if isinstance(error, HandedOver):
                return  # it did nothing wrong
            if not self._peer.links.is_up(error.peer):
                self._peer.view.forget(error.peer)  # it does not answer, so its advert is no reason to ask again
            self._peer.avoidance.failed(error.peer, trio.current_time())

    async def _find_route(self, error: PeerError) -> tuple[Hop, ...]:
        """The best route that is left, waited for as long as there is patience. Raises NoRoute."""
        discovery = self._peer.discovery
        patience_s = max(0.0, self._give_up_at_s - trio.current_time())
        await discovery.wait_until(self._model, lambda: self._best_route() is not None, patience_s)
        route = self._best_route()
        if route is None:
            serving = [advert for advert in self._peer.adverts(self._model) if advert.state == "serving"]
            why = explain_no_route(serving, self._layers)
            raise NoRoute(f"{self._why}; nobody took its place within {self._peer.settings.recover_s_max:.0f} s: {why}")
        if any(hop.peer in self._lost or hop.peer in self._busy for hop in route):
            self._busy.clear()
            again_s = error.retry_after_s if isinstance(error, Overloaded) else PAUSE_S * 2**self._attempts
            await trio.sleep(again_s * self._peer.rng.uniform(0.5, 1.5))
        return route

    def _best_route(self) -> tuple[Hop, ...] | None:
        routes = map(self._route_without, left_out_by_turns(list(self._lost), self._busy, self._attempts))
        return next((route for route in routes if route is not None), None)

    def _untried_route(self) -> tuple[Hop, ...] | None:
        """Each stage that does not answer takes its time, which must not keep one that would from being asked."""
        return self._route_without({*self._lost, *self._busy})

    def _route_without(self, avoid: Collection[PeerId]) -> tuple[Hop, ...] | None:
        terms = self._terms
        try:
            return self._peer.find_route(
                self._model,
                self._layers,
                avoid=avoid,
                prefer={peer for peer in self._session.holders.peers if peer not in self._lost},
                positions=terms.positions,
                scope=terms.cache_scope,
            )
        except NoRoute:
            return None
