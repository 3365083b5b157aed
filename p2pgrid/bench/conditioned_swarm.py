"""A local swarm in which nobody reaches a node but through an emulated link."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from p2pgrid.bench.conditioner import HOST, Conditioner, free_ports, open_conditioner
from p2pgrid.bench.profiles import Profile
from p2pgrid.bench.swarm_system import SwarmSystem
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.swarm.local_swarm import open_local_swarm


@dataclass(frozen=True)
class ConditionedSwarm:
    """A swarm behind its links; the link of a node is the one with its number."""

    system: SwarmSystem
    links: tuple[Conditioner, ...]

    @property
    def passed_bytes(self) -> int:
        """What went through all links, in both directions."""
        return sum(link.passed.up + link.passed.down for link in self.links)

    def rtts_s(self) -> list[float]:
        """The round trips that the client's own links measured so far."""
        links = self.system.peer.links
        return [rtt_s for peer in links.peers() if (rtt_s := links.rtt_s(peer)) is not None]


@asynccontextmanager
async def open_conditioned_swarm(model: str, nodes: int, profile: Profile) -> AsyncIterator[ConditionedSwarm]:
    """Start `nodes` nodes, each behind a link of `profile`, and wait for a route.

    A connection goes through the link of whoever was dialled, in both directions, and through no second one; the
    bootstrap peer, which no answer passes, is reached directly. Raises BadInput, LocalFault, NoRoute,
    PeerUnavailable.
    """
    description = await describe_model(model_store(), model)
    layers = description.manifest.layers
    ports = free_ports(nodes)
    async with AsyncExitStack() as stack:
        links = [
            await stack.enter_async_context(open_conditioner(profile, port, random.Random(number)))
            for number, port in enumerate(ports)
        ]

        def arguments_of(number: int) -> Sequence[str]:
            announced = f"/ip4/{HOST}/tcp/{links[number].port}"
            return ["--listen", f"/ip4/{HOST}/tcp/{ports[number]}", "--announce", announced]

        local = await stack.enter_async_context(open_local_swarm(model, nodes, -(-layers // nodes), arguments_of))
        await local.wait_serving()
        peer = await stack.enter_async_context(open_network(local.bootstrap_addresses))
        await wait_for_route(peer, description.id, layers)
        yield ConditionedSwarm(SwarmSystem(local, peer, description), tuple(links))
