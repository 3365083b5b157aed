"""What commands that open a gateway have in common."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from p2pgrid.cli.console import say
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.life import open_gateway
from p2pgrid.gateway.models import Models
from p2pgrid.ids import ModelId
from p2pgrid.node.client import ModelDescription
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import describe_model, known_models, resolve_model
from p2pgrid.storage.models import ModelStore


def gateway_for(peer: Peer, store: ModelStore, models: list[str] | None, bootstrap: Sequence[str] = ()) -> Gateway:
    """A gateway to those `models`, or to all that have a name here. Raises BadInput for an unknown one.

    `bootstrap` = addresses by which others join the same swarm.
    """
    names = known_models(store)
    if models:
        wanted = {resolve_model(store, model): model for model in models}
        names = {model: names.get(model, said) for model, said in wanted.items()}

    async def describe(model: ModelId) -> ModelDescription:
        return await describe_model(store, model, peer)

    return Gateway(peer, Models(peer, names, describe), bootstrap=tuple(bootstrap))


@asynccontextmanager
async def maybe_gateway(peer: Peer, store: ModelStore, address: tuple[str, int] | None) -> AsyncIterator[str | None]:
    """A gateway beside whatever else `peer` does, and its URL; nothing without an address."""
    if address is None:
        yield None
        return
    gateway = gateway_for(peer, store, None, peer.transport.addresses)  # a node is a bootstrap peer too
    async with open_gateway(gateway, *address) as url:
        say(f"gateway up; OpenAI's clients use {url}/v1")
        yield url
