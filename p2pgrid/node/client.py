"""A client's request over the swarm: find the model's description, find a route, open it, try another one."""

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec
import structlog
import trio

from p2pgrid.core.routing import explain_no_route, find_route
from p2pgrid.errors import NoRoute, Overloaded, PeerUnavailable
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.node.peer import Peer
from p2pgrid.node.recovering import Check, RecoveringSession, no_check
from p2pgrid.services.blobs import fetch_blob
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.manifest import Manifest, TokenizerData, manifest_from_bytes
from p2pgrid.wire.messages import Contact, Hop

log = structlog.get_logger()

SLOW_RETRY_S = 1.0
"""After so long a peer that was too slow is asked again."""


@dataclass(frozen=True)
class ModelDescription:
    """What a client knows of a model: enough to speak it, no weights."""

    id: ModelId
    manifest: Manifest
    tokenizer: TokenizerData


async def fetch_description(peer: Peer, model: ModelId) -> ModelDescription:
    """The manifest and tokenizer of `model` from peers that serve it, checked against their digests.

    Raises NoRoute when nobody serves the model, PeerUnavailable when nobody gives them.
    """

    def contacts() -> list[Contact]:
        return [Contact(a.peer, a.addresses) for a in peer.view.adverts(model)]

    if not await peer.discovery.wait_until(model, lambda: bool(contacts()), peer.settings.find_route_s_max):
        raise NoRoute(f"no node of the swarm serves model {model[:12]}: start one with `p2pgrid node`")
    try:
        manifest = manifest_from_bytes(await fetch_blob(peer.transport, contacts(), model))
        blob = await fetch_blob(peer.transport, contacts(), manifest.tokenizer)
        tokenizer = msgspec.json.decode(blob, type=TokenizerData)
    except msgspec.MsgspecError as error:
        raise PeerUnavailable(
            f"model {model[:12]} is described in a way this version does not know: {error}"
        ) from error
    return ModelDescription(model, manifest, tokenizer)


async def wait_for_route(peer: Peer, model: ModelId, layers: int, avoid: Collection[PeerId] = ()) -> tuple[Hop, ...]:
    """The best route just now, waiting for one as long as the settings allow. Raises NoRoute."""

    def look() -> tuple[Hop, ...] | None:
        try:
            return find_route(peer.adverts(model), layers, avoid)
        except NoRoute:
            return None

    await peer.discovery.wait_until(model, lambda: look() is not None, peer.settings.find_route_s_max)
    route = look()
    if route is None:
        serving = [a for a in peer.adverts(model) if a.state == "serving" and a.peer not in avoid]
        raise NoRoute(explain_no_route(serving, layers))
    return route


@asynccontextmanager
async def open_session(
    peer: Peer,
    model: ModelId,
    layers: int,
    terms: Terms = Terms(),  # noqa: B008 - frozen
    check: Check = no_check,
) -> AsyncIterator[RecoveringSession]:
    """A session on the best route that opens: lost peers are left out, busy ones are asked again later.

    Once open it goes on elsewhere when a stage is lost, unless `check` raises. Raises NoRoute, or what the last route
    said when the settings' patience is over.
    """
    async with AsyncExitStack() as stack:
        lost: set[PeerId] = set()
        busy: set[PeerId] = set()
        give_up_at_s = trio.current_time() + peer.settings.open_patience_s
        while True:
            avoid = lost | busy
            try:
                route = peer.find_route(model, layers, avoid=avoid, positions=terms.positions, scope=terms.cache_scope)
            except NoRoute:
                route = await wait_for_route(peer, model, layers, lost)
            try:
                opening = peer.pipeline.open(model, route, terms)
                session = await stack.enter_async_context(opening)
                for hop in route:
                    peer.avoidance.worked(hop.peer)
                break
            except (PeerUnavailable, Overloaded) as failure:
                if isinstance(failure, PeerUnavailable) and failure.peer is not None:
                    peer.avoidance.failed(failure.peer, trio.current_time())
                error = _judged(peer, failure)
                if trio.current_time() > give_up_at_s or error.peer is None:
                    raise error from None
                log.debug("trying again to open a session", error=str(error))
                if isinstance(error, PeerUnavailable):
                    lost.add(error.peer)
                elif error.peer not in busy:
                    busy.add(error.peer)
                else:  # all that it could take are busy: wait, each client for another while, and ask all again
                    busy.clear()
                    await trio.sleep(error.retry_after_s * peer.rng.uniform(0.5, 1.5))
        yield RecoveringSession(peer, model, layers, session, terms, check)


def _judged(peer: Peer, failure: PeerUnavailable | Overloaded) -> PeerUnavailable | Overloaded:
    """A peer that failed while our link to it holds is not gone: it answers pings, and has too much else to do."""
    if isinstance(failure, PeerUnavailable) and failure.peer is not None and peer.links.is_up(failure.peer):
        return Overloaded(str(failure), SLOW_RETRY_S, failure.peer)
    return failure
