"""What commands that open a gateway have in common."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from p2pgrid.cli.console import say
from p2pgrid.gateway.access import Access, check_exposure, check_origin
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.keys import KeyStore
from p2pgrid.gateway.life import open_gateway, parse_address
from p2pgrid.gateway.models import Models
from p2pgrid.ids import ModelId
from p2pgrid.node.client import ModelDescription
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import describe_model, known_models, resolve_model
from p2pgrid.storage.models import ModelStore
from p2pgrid.storage.paths import data_dir


@dataclass(frozen=True)
class GatewayPlan:
    """Where a gateway is to listen, and for whom; see `plan_gateway`."""

    host: str
    port: int
    access: Access
    models: Sequence[str] = ()
    """Names or ids; none = all that have a name here."""
    cors: Sequence[str] = ()


def plan_gateway(
    address: str,
    option: str,
    *,
    api_keys: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    cors: Sequence[str] | None = None,
) -> GatewayPlan:
    """Raises BadInput for what must not be or makes no sense, LocalFault for a damaged keys file."""
    host, port = parse_address(address, option)
    access = Access(time.time, KeyStore(data_dir()), tuple(api_keys or ()))
    check_exposure(host, access, option)
    for origin in cors or ():
        check_origin(origin)
    return GatewayPlan(host, port, access, tuple(models or ()), tuple(cors or ()))


@asynccontextmanager
async def run_gateway(plan: GatewayPlan, peer: Peer, store: ModelStore, bootstrap: Sequence[str]) -> AsyncIterator[str]:
    """A gateway to the swarm of `peer`, and its URL; at `bootstrap` others join the same swarm.

    Raises BadInput for an unknown model, LocalFault for a port.
    """
    names = known_models(store)
    if plan.models:
        wanted = {resolve_model(store, model): model for model in plan.models}
        names = {model: names.get(model, said) for model, said in wanted.items()}

    async def describe(model: ModelId) -> ModelDescription:
        return await describe_model(store, model, peer)

    gateway = Gateway(peer, Models(peer, names, describe), plan.access, plan.cors, bootstrap=tuple(bootstrap))
    async with open_gateway(gateway, plan.host, plan.port) as url:
        yield url


@asynccontextmanager
async def gateway_beside(plan: GatewayPlan, peer: Peer, store: ModelStore) -> AsyncIterator[str]:
    """A gateway beside whatever else `peer` does, and its URL."""
    # A node is a bootstrap peer too.
    async with run_gateway(plan, peer, store, peer.transport.addresses) as url:
        say(f"gateway up; OpenAI's clients use {url}/v1")
        yield url
