"""Peers on the local network, found by multicast DNS. A convenience: whatever fails here is only noted."""

from typing import Any

import structlog
import trio
import zeroconf
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.discovery.mdns.broadcaster import PeerBroadcaster
from libp2p.discovery.mdns.listener import PeerListener
from libp2p.discovery.mdns.utils import stringGen
from libp2p.peer.peerstore import PeerStore

from p2pgrid.errors import PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.libp2p_transport.dht import Dht
from p2pgrid.net.libp2p_transport.transport import Libp2pTransport
from p2pgrid.wire.messages import Contact

log = structlog.get_logger()

SERVICE = "_p2p-p2pgrid._udp.local."
"""Our own service type: other libp2p software on the LAN is not asked to join our DHT."""

FOUND_MAX = 64
GOODBYE_S_MAX = 0.4


async def watch_lan(transport: Libp2pTransport, dht: Dht) -> None:
    """Tell the LAN about us and join those that it tells us about, until cancelled."""
    found, waiting = trio.open_memory_channel[Contact](FOUND_MAX)
    token = trio.lowlevel.current_trio_token()

    def on_found(info: Any) -> None:  # in a thread of zeroconf
        contact = Contact(PeerId(str(info.peer_id)), tuple(str(address) for address in info.addrs)[:16])
        try:
            trio.from_thread.run_sync(_offer, found, contact, trio_token=token)
        except (trio.RunFinishedError, trio.Cancelled):
            return

    beacon = _Beacon(transport)
    peerDiscovery.register_peer_discovered_handler(on_found)
    try:
        await trio.to_thread.run_sync(beacon.start, abandon_on_cancel=True)
        async for contact in waiting:
            if contact.peer != transport.peer:
                try:
                    await dht.add(await transport.connect(contact))
                except PeerUnavailable as error:
                    log.debug("peer on the local network: %s", error)
    except (OSError, zeroconf.Error) as error:
        log.info("no multicast DNS on this machine: %s", error)
    finally:
        peerDiscovery.unregister_peer_discovered_handler(on_found)
        with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_S_MAX):
            await trio.to_thread.run_sync(beacon.stop, abandon_on_cancel=True)


def _offer(found: "trio.MemorySendChannel[Contact]", contact: Contact) -> None:
    try:
        found.send_nowait(contact)
    except trio.WouldBlock:
        log.debug("too many peers on the local network at once; %s waits for its next word", contact.peer)


class _Beacon:
    """libp2p's broadcaster and listener; both block, so they live in threads."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self._peer = transport.peer
        self._addresses = list(transport.addresses)
        self._zeroconf: zeroconf.Zeroconf | None = None
        self._stopped = False

    def start(self) -> None:
        name = f"{stringGen(63)}.{SERVICE}"
        self._zeroconf = zeroconf.Zeroconf()
        if self._stopped:
            self._zeroconf.close()
            return
        # A peer store of its own: zeroconf's threads must not write to the host's.
        PeerListener(zeroconf=self._zeroconf, peerstore=PeerStore(), service_type=SERVICE, service_name=name)
        port = int(self._addresses[0].split("/tcp/")[1].split("/")[0]) if self._addresses else 0
        PeerBroadcaster(
            zeroconf=self._zeroconf,
            service_type=SERVICE,
            service_name=name,
            peer_id=self._peer,
            port=port,
            listen_addrs=self._addresses,
        ).register()

    def stop(self) -> None:
        self._stopped = True
        if self._zeroconf is not None:
            self._zeroconf.close()
