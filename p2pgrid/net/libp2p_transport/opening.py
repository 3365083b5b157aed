"""Join the real network, and leave it without a trace."""

import logging
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import trio
from libp2p.network.connection import swarm_connection
from libp2p.tools.anyio_service import background_trio_service

from p2pgrid.errors import LocalFault, PeerUnavailable
from p2pgrid.net.libp2p_transport.addresses import ip_hosts, parse_announce, parse_bootstrap, parse_listen
from p2pgrid.net.libp2p_transport.dht import Dht
from p2pgrid.net.libp2p_transport.direct import DirectDialler, open_direct_listener
from p2pgrid.net.libp2p_transport.host import build_host, close_host
from p2pgrid.net.libp2p_transport.mdns import watch_lan
from p2pgrid.net.libp2p_transport.transport import Libp2pTransport
from p2pgrid.net.transport import Transport
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.signing import Identity

log = structlog.get_logger()

RECONNECT_S = 5.0


@asynccontextmanager
async def open_libp2p(
    identity: Identity,
    listen: Sequence[str],
    bootstrap: Sequence[str],
    *,
    dht_server: bool,
    mdns: bool = False,
    announce: Sequence[str] = (),
    direct: bool = True,
) -> AsyncIterator[Transport]:
    """This node's place in the libp2p network, until the context ends.

    `listen` and `bootstrap` are multiaddrs, the latter with `/p2p/<id>`; nothing to listen on means a free port
    on loopback, nothing to begin with means that others come to us. A `dht_server` keeps records for others.
    With `mdns`, peers on the local network are found and joined as well. Others are told the `announce` addresses,
    multiaddrs without `/p2p/`; without any, those that we listen on. With `direct`, links get connections of their
    own where peers can have them; nobody is told of a port for that who is told to dial another address than ours.

    Raises BadInput for an address that is none, LocalFault when the port is taken, PeerUnavailable when no
    bootstrap peer answers.
    """
    _hush()
    told = parse_announce(announce)
    listening = parse_listen(listen)
    beginnings = [contact for contact in parse_bootstrap(bootstrap) if contact.peer != identity.peer]
    with _single_errors():
        host = build_host(identity, listening, told)
        dht = Dht(host, server=dht_server)
        async with host.run(listen_addrs=listening):
            try:
                if len(host.get_transport_addrs()) < len(listening):
                    raise LocalFault(f"cannot listen on {', '.join(map(str, listening))}")
                transport = Libp2pTransport(host, dht, DirectDialler(identity) if direct else None)
                offering = ip_hosts(listening) if direct and not told else []
                async with (
                    background_trio_service(dht.service),
                    _open_offers(transport, identity, offering),
                    trio.open_nursery() as tasks,
                ):
                    await _join(transport, dht, beginnings)
                    tasks.start_soon(_stay_joined, transport, dht, beginnings)
                    tasks.start_soon(dht.keep_up)
                    if mdns:
                        tasks.start_soon(watch_lan, transport, dht)
                    yield transport
                    tasks.cancel_scope.cancel()
            finally:
                await close_host(host)


@asynccontextmanager
async def _open_offers(transport: Libp2pTransport, identity: Identity, hosts: Sequence[str]) -> AsyncIterator[None]:
    """Take direct connections at `hosts`, if there are any."""
    if not hosts:
        yield
        return
    async with open_direct_listener(identity, hosts, transport.handlers) as listener:
        transport.serve_offers(listener)
        yield


async def _join(transport: Libp2pTransport, dht: Dht, beginnings: list[Contact]) -> None:
    """Connect to the bootstrap peers, all at once; one is enough, and is not kept waiting by the others."""
    if not beginnings:
        return
    failures: list[str] = []
    async with trio.open_nursery() as dials:

        async def dial(contact: Contact) -> None:
            try:
                await dht.add(await transport.connect(contact))
                dials.cancel_scope.cancel()
            except PeerUnavailable as error:
                failures.append(str(error))

        for contact in beginnings:
            dials.start_soon(dial, contact)
    if len(failures) == len(beginnings):
        raise PeerUnavailable(f"no bootstrap peer answers: {'; '.join(failures)}")


async def _stay_joined(transport: Libp2pTransport, dht: Dht, beginnings: list[Contact]) -> None:
    """Dial bootstrap peers again whose connection was lost, and those that did not answer at first."""
    while True:
        for contact in beginnings:
            try:
                await dht.add(await transport.connect(contact))
            except PeerUnavailable as error:
                log.debug("bootstrap peer: %s", error)
        await trio.sleep(RECONNECT_S)


def _hush() -> None:
    """libp2p writes what goes wrong with any peer to its log; what matters of it comes to us as an error."""
    for name in ("libp2p", "zeroconf", "multiaddr"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    # This module logs through the root logger, which would set up a handler on stderr for the whole process.
    swarm_connection.logging = logging.getLogger(swarm_connection.__name__)
    warnings.filterwarnings("ignore", module=r"(libp2p|trio_typing|multiaddr|zeroconf)(\.|$)")


@contextmanager
def _single_errors() -> Iterator[None]:
    """Take a lone error out of the exception groups that nurseries wrap it in."""
    try:
        yield
    except BaseExceptionGroup as group:
        leaf: Any = group
        while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
            leaf = leaf.exceptions[0]
        if isinstance(leaf, Exception) and not isinstance(leaf, BaseExceptionGroup):
            raise leaf from leaf.__cause__
        raise
