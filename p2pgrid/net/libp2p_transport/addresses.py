"""Multiaddrs in and out: what users write, where we listen, what we tell others, where a peer may be dialled."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence

import psutil
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError
from multiaddr.exceptions import ProtocolLookupError

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import PeerId
from p2pgrid.wire.messages import Contact

DEFAULT_LISTEN = "/ip4/127.0.0.1/tcp/0"
ADDRESSES_MAX = 16

_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")


def parse_listen(listen: Sequence[str]) -> list[Multiaddr]:
    """Where to listen, loopback only if nothing is said. Raises BadInput, and LocalFault for a port in use."""
    addresses = [_parse(text, _HOSTS[:2]) for text in listen or (DEFAULT_LISTEN,)]
    for address in addresses:
        _check_free(address)
    return addresses


def parse_announce(announce: Sequence[str]) -> list[Multiaddr]:
    """What to tell others instead of the listening addresses. Raises BadInput for what nobody could dial."""
    addresses = [_parse(text, _HOSTS) for text in announce]
    if len(addresses) > ADDRESSES_MAX:
        raise BadInput(f"{len(addresses)} addresses to announce: give {ADDRESSES_MAX} at most")
    for address in addresses:
        if _value(address, "p2p") is not None:
            raise BadInput(f"cannot announce {address}: leave /p2p/ and what follows away, it is added")
        if not dialable([str(address)]):
            raise BadInput(f"cannot announce {address}: give an address and a port that others can dial")
    return addresses


def parse_bootstrap(bootstrap: Sequence[str]) -> list[Contact]:
    """Peers to begin with, from multiaddrs that end in `/p2p/<id>`. Raises BadInput."""
    contacts = []
    for text in bootstrap:
        address = _parse(text, _HOSTS)
        peer = _value(address, "p2p")
        if peer is None:
            raise BadInput(f"the bootstrap address {text!r} names no peer: append /p2p/ and the peer's id")
        contacts.append(Contact(PeerId(peer), (str(_without_peer(address)),)))
    return contacts


def dialable(addresses: Iterable[str]) -> list[Multiaddr]:
    """Those of a peer's addresses that we can dial, without `/p2p/…`; the rest is left out in silence."""
    found: dict[str, Multiaddr] = {}
    for text in addresses:
        try:
            address = _without_peer(_parse(text, _HOSTS))
        except BadInput:
            continue
        host = _value(address, "ip4") or _value(address, "ip6")
        if _value(address, "tcp") != "0" and not (host and ipaddress.ip_address(host).is_unspecified):
            found[str(address)] = address
        if len(found) == ADDRESSES_MAX:
            break
    return list(found.values())


def ip_hosts(addresses: Iterable[Multiaddr]) -> list[str]:
    """The IP addresses in them, each once; names are left out."""
    hosts = [_value(address, "ip4") or _value(address, "ip6") for address in addresses]
    return list(dict.fromkeys(host for host in hosts if host))


def announced(listening: Iterable[Multiaddr]) -> list[Multiaddr]:
    """What others can dial: "all interfaces" becomes the address of each, loopback only if there is no other."""
    addresses: dict[str, Multiaddr] = {}
    for address in listening:
        version = "ip4" if _value(address, "ip4") is not None else "ip6"
        host = _value(address, version)
        if host is None or not ipaddress.ip_address(host).is_unspecified:
            addresses[str(address)] = address
            continue
        for each in interface_hosts(version):
            text = f"/{version}/{each}/tcp/{_value(address, 'tcp')}"
            addresses[text] = Multiaddr(text)
    return list(addresses.values())[:ADDRESSES_MAX]


def interface_hosts(version: str) -> list[str]:
    """The IP addresses of this machine's interfaces that are up; `version` is `ip4` or `ip6`."""
    family = socket.AF_INET if version == "ip4" else socket.AF_INET6
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    hosts = [
        ipaddress.ip_address(entry.address.partition("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family == family
    ]
    reachable = [host for host in hosts if not host.is_loopback and not host.is_link_local]
    return [str(host) for host in reachable or hosts]


def _parse(text: str, hosts: Sequence[str]) -> Multiaddr:
    wrong = f"{text!r} is no address to use here: expected something like /ip4/192.0.2.1/tcp/4001"
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except (MultiaddrError, ValueError) as error:
        raise BadInput(wrong) from error
    if len(names) not in (2, 3) or names[0] not in hosts or names[1:] not in (["tcp"], ["tcp", "p2p"]):
        raise BadInput(wrong)
    return address


def _value(address: Multiaddr, protocol: str) -> str | None:
    try:
        value = address.value_for_protocol(protocol)
    except ProtocolLookupError:
        return None
    return None if value is None else str(value)


def _without_peer(address: Multiaddr) -> Multiaddr:
    peer = _value(address, "p2p")
    return address if peer is None else address.decapsulate(Multiaddr(f"/p2p/{peer}"))


def _check_free(address: Multiaddr) -> None:
    # libp2p listens with SO_REUSEPORT, so two nodes would share a port and each get half of the connections.
    port = int(_value(address, "tcp") or 0)
    if port == 0:
        return
    ip4 = _value(address, "ip4")
    family = socket.AF_INET if ip4 is not None else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip4 if ip4 is not None else _value(address, "ip6"), port))
        except OSError as error:
            why = "the port is in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            raise LocalFault(f"cannot listen on {address}: {why}; choose another one with --listen") from error
