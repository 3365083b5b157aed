"""What every participant is made of, node or client: links, a view of the swarm, discovery, a pipeline."""

import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from p2pgrid.core.swarm_view import SwarmView
from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import PeerId, SessionId
from p2pgrid.net.links import Delivery, Links
from p2pgrid.net.transport import Transport
from p2pgrid.services.discovery import Discovery
from p2pgrid.services.pipeline import Pipeline
from p2pgrid.services.worker import Worker
from p2pgrid.settings import DiscoverySettings, LinkSettings, PipelineSettings
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.messages import Close, Open, Replay, Step
from p2pgrid.wire.signing import Identity


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

    @property
    def view(self) -> SwarmView:
        return self.discovery.view

    def spread(self, other: PeerId, scope: str) -> float:
        """A figure from 0 to 1 by which we choose between peers that are equally good.

        For a scope it is the same every time, so that its prompts meet the caches where they are.
        """
        digest = hashlib.blake2b(f"{self.transport.peer} {scope} {other}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

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

    def on_lost(self, peer: PeerId, reason: str) -> None:
        self.pipeline.on_lost(peer, reason)
        if self.worker is not None:
            self.worker.on_lost(peer, reason)
        self.view.forget(peer)


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

    def on_lost(lost: PeerId, reason: str) -> None:
        peer.on_lost(lost, reason)

    links = Links(
        transport,
        link_settings,
        on_message=on_message,
        on_message_nowait=on_message_nowait,
        on_lost=on_lost,
        tracer=tracer,
    )
    discovery = Discovery(transport, SwarmView(), discovery_settings, identity=identity, wall=wall, rng=rng)
    pipeline = Pipeline(links, pipeline_settings, lambda: SessionId(f"{rng.getrandbits(128):032x}"))
    peer = Peer(transport, links, discovery, pipeline, pipeline_settings, rng, tracer)
    async with trio.open_nursery() as tasks:
        await tasks.start(links.run)
        await tasks.start(discovery.run)
        yield peer
        tasks.cancel_scope.cancel()
