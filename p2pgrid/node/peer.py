"""What every participant is made of, node or client: links, a view of the swarm, discovery, a pipeline."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from p2pgrid.core.avoidance import Avoidance
from p2pgrid.core.routing import find_route, weighted_spread_ms
from p2pgrid.core.swarm_view import SwarmView
from p2pgrid.errors import NoRoute, PeerMisbehaved
from p2pgrid.ids import ModelId, PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.net.transport import Transport
from p2pgrid.services.discovery import Discovery
from p2pgrid.services.pipeline import Pipeline
from p2pgrid.services.worker import Worker
from p2pgrid.settings import DiscoverySettings, LinkSettings, PipelineSettings
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.adverts import DELAYS_MAX, Advert
from p2pgrid.wire.messages import Close, Hop, Open, Replay, Step
from p2pgrid.wire.signing import Identity

SPREAD_MS = 1.0
"""Routes whose tokens differ by less than this are taken for nearly equal."""


@dataclass
class Peer:
    """One participant. `worker` is None for whoever serves no stage (yet)."""

    transport: Transport
    links: Links
    discovery: Discovery
    pipeline: Pipeline
    settings: PipelineSettings
    rng: random.Random
    tracer: Tracer = NO_TRACE
    worker: Worker | None = None
    avoidance: Avoidance = field(default_factory=Avoidance)

    @property
    def view(self) -> SwarmView:
        return self.discovery.view

    def adverts(self, model: ModelId) -> list[Advert]:
        """Of all nodes of `model` that we know, and of ourselves if we are one."""
        own = self.discovery.own_advert()
        ours = [own[0]] if own is not None and own[0].model == model else []
        return [*self.view.adverts(model), *ours]

    def find_route(
        self,
        model: ModelId,
        layers: int,
        *,
        avoid: Collection[PeerId] = (),
        prefer: Collection[PeerId] = (),
        positions: int = 0,
        scope: str = "",
    ) -> tuple[Hop, ...]:
        """The best route as things look now, past peers that failed us lately unless there are no others.

        `avoid` are left out whatever comes; `prefer` hold the session already. From now on the view of `model` is
        kept fresh. Raises NoRoute.
        """
        self.discovery.interests.add(model)
        adverts = self.adverts(model)
        find = partial(
            find_route,
            adverts,
            layers,
            spread_ms=self._spread_ms(adverts, scope),
            prefer=prefer,
            positions=positions,
            now_s=self.discovery.now_s(),
        )
        failing = self.avoidance.avoided(trio.current_time()) - {*prefer}
        try:
            return find(avoid={*avoid, *failing})
        except NoRoute:
            if not failing:
                raise
        self.avoidance.pardon()
        return find(avoid=avoid)

    def _spread_ms(self, adverts: Sequence[Advert], scope: str) -> dict[PeerId, float]:
        """Figures by which we choose between routes that are nearly equal.

        For a scope they are the same every time, so that its prompts meet the caches where they are. Without one
        they are left to chance, so that the load spreads.
        """
        if not scope:
            return weighted_spread_ms([advert.peer for advert in adverts], self.rng, SPREAD_MS)
        return {advert.peer: SPREAD_MS * self.spread(advert.peer, scope) for advert in adverts}

    def spread(self, other: PeerId, scope: str) -> float:
        """A figure from 0 to 1, of each scope its own."""
        digest = hashlib.blake2b(f"{self.transport.peer} {scope} {other}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    def delays_ms(self, model: ModelId) -> dict[PeerId, float]:
        """One way to those nodes of `model` with whom we have a link, the nearest ones."""
        nodes = {advert.peer for advert in self.view.adverts(model)}
        rtts_s = {peer: self.links.rtt_s(peer) for peer in self.links.peers() if peer in nodes}
        nearest = sorted((rtt_s, peer) for peer, rtt_s in rtts_s.items() if rtt_s is not None)
        return {peer: 1000 * rtt_s / 2 for rtt_s, peer in nearest[:DELAYS_MAX]}

    async def on_message(self, delivery: Delivery) -> None:
        """Steps of other people's sessions go to the stage, what belongs to our own to the pipeline."""
        message = delivery.message
        ours = isinstance(message, Step) and self.pipeline.relays(message.session)
        if ours or not isinstance(message, Open | Step | Replay | Close):
            await self.pipeline.on_message(delivery)
        elif self.worker is not None:
            await self.worker.on_message(delivery)
        else:
            raise PeerMisbehaved("a request for a stage, and none is served here", delivery.peer)

    def on_message_nowait(self, delivery: Delivery) -> bool:
        """Whether the message needed nobody to wait, and was seen to; the rest is `on_message`'s."""
        message = delivery.message
        if isinstance(message, Step | Replay | Close):
            ours = isinstance(message, Step) and self.pipeline.relays(message.session)
            return not ours and self.worker is not None and self.worker.on_message_nowait(delivery)
        return self.pipeline.on_message_nowait(delivery)

    def on_handed_over(self) -> None:
        """All that came together was taken."""
        if self.worker is not None:
            self.worker.run_now()

    def on_lost(self, peer: PeerId, reason: str) -> None:
        self.pipeline.on_lost(peer, reason)
        if self.worker is not None:
            self.worker.on_lost(peer, reason)
        self.discovery.lost(peer)


@asynccontextmanager
async def open_peer(
    transport: Transport,
    identity: Identity,
    *,
    wall: Callable[[], float],
    rng: random.Random,
    link_settings: LinkSettings = LinkSettings(),  # noqa: B008 - frozen
    discovery_settings: DiscoverySettings = DiscoverySettings(),  # noqa: B008 - frozen
    pipeline_settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    tracer: Tracer = NO_TRACE,
) -> AsyncIterator[Peer]:
    """A participant on `transport`, its services running until the context ends.

    `wall` gives Unix seconds; `rng` decides all that is left to chance.
    """

    async def on_message(delivery: Delivery) -> None:
        await peer.on_message(delivery)

    def on_message_nowait(delivery: Delivery) -> bool:
        return peer.on_message_nowait(delivery)

    def on_handed_over() -> None:
        peer.on_handed_over()

    def on_lost(lost: PeerId, reason: str) -> None:
        peer.on_lost(lost, reason)

    links = Links(
        transport,
        link_settings,
        on_message=on_message,
        on_message_nowait=on_message_nowait,
        on_handed_over=on_handed_over,
        on_lost=on_lost,
        tracer=tracer,
    )
    discovery = Discovery(
        transport, SwarmView(), discovery_settings, identity=identity, wall=wall, rng=rng, has_link=links.is_up
    )
    pipeline = Pipeline(links, pipeline_settings, lambda: SessionId(f"{rng.getrandbits(128):032x}"))
    peer = Peer(transport, links, discovery, pipeline, pipeline_settings, rng, tracer)
    async with trio.open_nursery() as tasks:
        await tasks.start(links.run)
        await tasks.start(discovery.run)
        yield peer
        tasks.cancel_scope.cancel()
