"""Provider records in libp2p's Kademlia DHT, with its surprises taken out."""

import time
from typing import Any

import structlog
import trio
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID

from p2pgrid.errors import BadInput
from p2pgrid.ids import PeerId
from p2pgrid.net.transport import DHT_KEY_BYTES_MAX
from p2pgrid.wire.messages import Contact

log = structlog.get_logger()

ANNOUNCE_PACE_S = 1.0
"""A peer takes ten records in ten seconds and drops the rest without a word."""

RECORD_S = 600.0
"""A provider that did not renew its record for so long is gone; libp2p would keep it for two days."""

KEYS_MAX = 4096
QUERY_S_MAX = 2.0
LOOKUP_S_MAX = 4.0
LINGER_S = 1.0
ADDRESSES_MAX = 16
UPKEEP_S = 30.0


class Dht:
    """Announce and look up, on top of a running `KadDHT`."""

    def __init__(self, host: Any, *, server: bool) -> None:
        # No limit of peers per subnet: a home or a campus is one subnet, and a grid.
        mode = DHTMode.SERVER if server else DHTMode.CLIENT
        self.service: Any = KadDHT(host, mode, max_peers_per_subnet=0)
        self._take_newest(self.service.provider_store)
        self._own_id: ID = host.get_id()
        self._announcing = trio.Lock()
        self._next_announce_at = 0.0

    async def add(self, peer: ID) -> None:
        """Take a peer that is connected into the routing table."""
        await self.service.add_peer(peer, skip_server_mode_check=True)

    async def announce(self, key: str) -> None:
        """Write ourselves as a provider of `key` to the peers nearest to it. Raises BadInput."""
        name = _encode(key)
        store = self.service.provider_store
        async with self._announcing:
            await trio.sleep_until(self._next_announce_at)
            self._next_announce_at = trio.current_time() + ANNOUNCE_PACE_S
            with trio.move_on_after(LOOKUP_S_MAX):
                try:
                    await store.provide(name)
                except Exception as error:  # noqa: BLE001  (the owner, as in _nearest)
                    log.debug("announcing %s: %r", key, error)
                finally:
                    store.providing_keys.discard(name)  # we renew it ourselves, for as long as it is true

    async def find_providers(self, key: str) -> list[Contact]:
        """Who is written there, ourselves left out. Raises BadInput.

        libp2p's own lookup answers from what it found before, for up to two days, and passes it on as if it
        were a record; so the peers nearest to the key are asked one by one here, and nothing is kept. Those that we
        know are asked while nearer ones are looked for, because one that hangs holds up libp2p's search; once some
        peer has named providers, the others have a moment more.
        """
        name = _encode(key)
        self._forget_old()
        found: dict[ID, set[str]] = {}
        self._collect(found, self.service.provider_store.get_providers(name))
        asked = {self._own_id}

        async def ask(peer: ID) -> None:
            if peer in asked:
                return
            asked.add(peer)
            with trio.move_on_after(QUERY_S_MAX):
                store = self.service.provider_store
                providers, _ = await store._get_providers_from_peer_with_closers(peer, name)
                self._collect(found, providers)
                if providers:
                    lookup.deadline = min(lookup.deadline, trio.current_time() + LINGER_S)

        with trio.move_on_after(LOOKUP_S_MAX) as lookup:
            async with trio.open_nursery() as queries:
                for peer in self.service.routing_table.find_local_closest_peers(name):
                    queries.start_soon(ask, peer)
                for peer in await self._nearest(name):
                    queries.start_soon(ask, peer)
        return [
            Contact(PeerId(str(peer)), tuple(sorted(addresses)[:ADDRESSES_MAX])) for peer, addresses in found.items()
        ]

    async def keep_up(self) -> None:
        """Look ourselves up now and then, which is how peers get to know each other; forget what is old."""
        while True:
            with trio.move_on_after(LOOKUP_S_MAX):
                for peer in await self._nearest(self._own_id.to_bytes()):
                    await self.add(peer)
            self._forget_old()
            await trio.sleep(UPKEEP_S)

    async def _nearest(self, name: bytes) -> list[ID]:
        try:
            peers = await self.service.peer_routing.find_closest_peers_network(name)
        except Exception as error:  # noqa: BLE001  (the owner: whatever a peer's answer did to libp2p, we go on)
            log.debug("looking for peers: %r", error)
            return []
        return [peer for peer in peers if peer != self._own_id]

    @staticmethod
    def _take_newest(store: Any) -> None:
        """libp2p keeps the first 20 providers of a key and turns away whoever comes then, though the 20 be long gone.

        Here the record that was written longest ago gives way: who lives renews its own.
        """
        add = store.add_provider

        def add_newest(key: bytes, provider: Any) -> None:
            records = store.providers.get(key, {})
            if len(records) >= BUCKET_SIZE and str(provider.peer_id) not in records:
                del records[min(records, key=lambda peer: records[peer].timestamp)]
            add(key, provider)

        store.add_provider = add_newest

    def _collect(self, found: dict[ID, set[str]], providers: list[Any]) -> None:
        for provider in providers:
            if provider.peer_id != self._own_id:
                addresses = {str(address) for address in provider.addrs}
                found.setdefault(provider.peer_id, set()).update(a for a in addresses if len(a) <= 256)

    def _forget_old(self) -> None:
        records = self.service.provider_store.providers
        written_after = time.time() - RECORD_S  # libp2p stamps records with the wall clock
        for name in list(records):
            for peer in [p for p, record in records[name].items() if record.timestamp < written_after]:
                del records[name][peer]
            if not records[name]:
                del records[name]
        for name in list(records)[:-KEYS_MAX]:
            del records[name]


def _encode(key: str) -> bytes:
    name = key.encode()
    if len(name) > DHT_KEY_BYTES_MAX:
        raise BadInput(f"the DHT key {key!r} is over {DHT_KEY_BYTES_MAX} bytes")
    return name
