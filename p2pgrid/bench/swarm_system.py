"""The systems `swarm` and `star`: node processes on this machine, asked by a client in this one.

In a star the same nodes do not talk to each other: every hidden state goes through the client.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from p2pgrid.bench.child import Request
from p2pgrid.bench.one_process import answer_whole
from p2pgrid.bench.systems import Timed
from p2pgrid.node.client import ModelDescription, open_session, wait_for_route
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import StageSettings
from p2pgrid.swarm.local_swarm import LocalSwarm, listen_anywhere, open_local_swarm


@dataclass
class SwarmSystem:
    """A client of a running swarm."""

    local: LocalSwarm
    peer: Peer
    model: ModelDescription
    name: str = "swarm"
    terms: Terms = field(default_factory=Terms)
    """Of every session; its positions are what a request may take."""
    reuses: bool = False
    """Whether what stages still hold of a prompt is left out."""

    async def ask(self, prompt_ids: Sequence[int], max_tokens: int) -> Timed:
        """See `System.ask`; opening the session counts. Raises NoRoute, Overloaded, PeerUnavailable, PeerMisbehaved."""
        asked_at = trio.current_time()
        manifest = self.model.manifest
        reusable = tuple(prompt_ids) if self.reuses else ()
        terms = replace(self.terms, positions=len(prompt_ids) + max_tokens, prompt=reusable)
        async with open_session(self.peer, self.model.id, manifest.layers, terms) as session:
            opened_s = trio.current_time() - asked_at
            answer = await answer_whole(
                session,
                Request(0, tuple(prompt_ids), max_tokens),
                context_max=min(StageSettings().context_max, manifest.context),
                run_ahead=not terms.relayed,
            )
        times = tuple(opened_s + time_s for time_s in answer.token_times_s)
        return Timed(times[0], times, tuple(answer.token_ids), answer.cached_tokens, session.id)

    def pids(self) -> list[int]:
        """The nodes'; the client's share is this process's, and small."""
        return [node.pid for node in self.local.nodes()]

    def as_star(self) -> "SwarmSystem":
        """The same nodes, asked as a star."""
        return replace(self, name="star", terms=replace(self.terms, relayed=True))

    def asked_with(self, name: str, terms: Terms, *, reuses: bool = False) -> "SwarmSystem":
        """The same nodes, asked in another way."""
        return replace(self, name=name, terms=terms, reuses=reuses)


@asynccontextmanager
async def open_swarm_system(
    model: str, nodes: int, arguments_of: Callable[[int], Sequence[str]] = listen_anywhere
) -> AsyncIterator[SwarmSystem]:
    """Start the swarm and wait for a route; for `arguments_of` see `open_local_swarm`.

    Raises BadInput, LocalFault, NoRoute, PeerUnavailable.
    """
    description = await describe_model(model_store(), model)
    layers = description.manifest.layers
    async with open_local_swarm(model, nodes, -(-layers // nodes), arguments_of) as local:
        await local.wait_serving()
        async with open_network(local.bootstrap_addresses) as peer:
            await wait_for_route(peer, description.id, layers)
            yield SwarmSystem(local, peer, description)
