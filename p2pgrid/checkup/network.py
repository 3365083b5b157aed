"""Checks of the network: may we listen, who could dial us, do bootstrap peers answer, do clocks agree."""

import ipaddress
import time
from collections.abc import Sequence
from statistics import median

import trio

from p2pgrid.checkup.finding import Finding
from p2pgrid.errors import BadInput, LocalFault, P2pgridError, PeerError
from p2pgrid.ids import ModelId
from p2pgrid.net.exchange import ask
from p2pgrid.net.libp2p_transport.addresses import announced, ip_hosts, parse_bootstrap, parse_listen
from p2pgrid.node.bare_errors import bare_errors
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import open_network
from p2pgrid.services.discovery import provider_key
from p2pgrid.settings import DiscoverySettings
from p2pgrid.wire.adverts import ADVERT_PROTOCOL, Adverts, Exchange
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.signing import open_advert

ASKED_MAX = 8
"""Nodes whose clocks are compared with ours."""
APART_S_WARN = 5.0
APART_S_MAX = 30.0
"""An advert holds for a minute: much further apart, and nodes do not see one another."""


def listening(listen: Sequence[str]) -> list[Finding]:
    """Whether a node could listen at these multiaddrs, and which machines could dial it there."""
    try:
        addresses = parse_listen(listen)
    except BadInput as error:
        return [Finding("port", "problem", str(error), "give --listen like /ip4/0.0.0.0/tcp/4001")]
    except LocalFault as error:
        return [Finding("port", "problem", str(error), "end the other program, or give another port with --listen")]
    ours = announced(addresses)
    says = f"free to listen on {', '.join(map(str, addresses))}"
    return [Finding("port", "ok", says), reachable(ip_hosts(ours))]


def reachable(hosts: Sequence[str]) -> Finding:
    """Who could dial a node that listens at these IP addresses."""
    shown = ", ".join(hosts) or "none"
    kinds = [ipaddress.ip_address(host) for host in hosts]
    if any(kind.is_global for kind in kinds):
        return Finding("address", "ok", f"others dial {shown}, a public address: let the port through the firewall")
    if all(kind.is_loopback for kind in kinds):
        only = f"others dial {shown}: only programs on this machine can"
        return Finding("address", "warning", only, "listen on /ip4/0.0.0.0/tcp/4001 for other machines to join")
    private = f"others dial {shown}, a private address: machines in this network can, those beyond the router cannot"
    forward = "forward a port on the router and give p2pgrid node --announce /ip4/ITS-ADDRESS/tcp/PORT"
    return Finding("address", "warning", private, f"fine within one network; else {forward}")


async def bootstrap_peer(address: str) -> Finding:
    """Whether one bootstrap peer answers, by joining through it alone."""
    began_s = trio.current_time()
    try:
        with bare_errors():
            parse_bootstrap([address])
            async with open_network([address]):
                took_s = trio.current_time() - began_s
    except P2pgridError as error:
        remedy = "is it running, is that its address (it prints it), does a firewall stand between?"
        return Finding("bootstrap peer", "problem", str(error), remedy)
    return Finding("bootstrap peer", "ok", f"{address} answered; joined within {took_s:.1f} s")


async def clocks(bootstrap: Sequence[str], models: Sequence[ModelId]) -> Finding:
    """Whether our clock agrees with those of nodes, by when they say that they signed their adverts."""
    ahead_s: list[float] = []
    async with open_network(bootstrap) as peer:
        for model in models:
            providers = await peer.transport.find_providers(provider_key(model))
            for contact in providers[: ASKED_MAX - len(ahead_s)]:
                found_s = await _clock_ahead_s(peer, contact, model)
                if found_s is not None:
                    ahead_s.append(found_s)
    return compared(ahead_s)


def compared(ahead_s: Sequence[float]) -> Finding:
    """A finding from by how much the clocks of nodes are ahead of ours."""
    if not ahead_s:
        return Finding("clock", "ok", "no node was found to compare it with")
    apart_s = median(ahead_s)
    if abs(apart_s) <= APART_S_WARN:
        return Finding("clock", "ok", f"agrees with {len(ahead_s)} nodes to within {APART_S_WARN:.0f} s")
    way = "behind" if apart_s > 0 else "ahead of"
    says = f"{abs(apart_s):.0f} s {way} that of most of {len(ahead_s)} nodes"
    remedy = "set it by NTP: timedatectl set-ntp true"
    if abs(apart_s) <= APART_S_MAX:
        return Finding("clock", "warning", says, remedy)
    return Finding(
        "clock", "problem", f"{says}: what they say of themselves looks expired, or too new to be true", remedy
    )


async def _clock_ahead_s(peer: Peer, contact: Contact, model: ModelId) -> float | None:
    """By how much a node's clock is ahead of ours; None when it does not answer.

    Our view is no help: with a clock that is off it takes nothing in.
    """
    settings = DiscoverySettings()
    request = Exchange(model=model)
    try:
        reply: Adverts = await ask(
            peer.transport, contact, ADVERT_PROTOCOL, request, Adverts, deadline_s=settings.exchange_s_max
        )
        own = next((a for a in map(open_advert, reply.adverts) if a.peer == contact.peer), None)
    except PeerError:
        return None
    return None if own is None else signed_ahead_s(own.expires_at_s - settings.advert_ttl_s, time.time())


def signed_ahead_s(signed_at_s: float, now_s: float) -> float:
    """By how much a clock that showed `signed_at_s` is surely ahead of ours (negative: behind), for one at `now_s`.

    What a node says of itself was signed up to `advert_renew_s` ago, so that much may be age.
    """
    apart_s = signed_at_s - now_s
    return apart_s if apart_s > 0 else min(apart_s + DiscoverySettings().advert_renew_s, 0.0)
