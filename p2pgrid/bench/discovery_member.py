"""`python -m p2pgrid.bench.discovery_member`: a peer that joins, advertises a model, and serves nothing.

It has the network and the discovery service of a node, so that many of them fit on one machine.
"""

import argparse
import random
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.net.transport import ByteStream, StreamHandler, Transport
from p2pgrid.node.peer import open_peer
from p2pgrid.node.state_file import ProcessState, own_state, write_json
from p2pgrid.storage.identity import ephemeral_identity
from p2pgrid.wire.adverts import Advert
from p2pgrid.wire.messages import Contact

STDIN = 0


class MemberState(ProcessState, frozen=True, kw_only=True):
    """A member that has published its advert, and how long that took."""

    join_s: float
    """From the start of its network to a place in the DHT."""
    publish_s: float
    """From then on until its provider record was written and the peers that it found had its advert."""


class AnnouncingTransport:
    """A transport that says when the first provider record was written."""

    def __init__(self, transport: Transport) -> None:
        self.announced = trio.Event()
        self._transport = transport

    @property
    def peer(self) -> PeerId:
        return self._transport.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._transport.addresses

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._transport.serve(protocol, handler)

    async def open_stream(self, contact: Contact, protocol: str) -> ByteStream:
        return await self._transport.open_stream(contact, protocol)

    async def announce(self, key: str) -> None:
        await self._transport.announce(key)
        self.announced.set()

    async def find_providers(self, key: str) -> list[Contact]:
        return await self._transport.find_providers(key)


def advert_for(model: ModelId) -> Advert:
    """One layer of a model of one; who says it and until when is filled in by the discovery service."""
    return Advert(
        peer=PeerId(""),
        addresses=(),
        model=model,
        layers=1,
        state="serving",
        span=Span(0, 1),
        span_max=1,
        sequence=0,
        expires_at_s=0.0,
    )


async def live(bootstrap: Sequence[str], model: ModelId, state_file: Path) -> None:
    """Join, publish, say so in the state file, and stay until cancelled."""
    identity = ephemeral_identity()
    started_s = trio.current_time()
    async with open_libp2p(identity, ["/ip4/127.0.0.1/tcp/0"], bootstrap, dht_server=True) as libp2p:
        joined_s = trio.current_time()
        transport = AnnouncingTransport(libp2p)
        rng = random.Random(secrets.randbits(64))
        async with open_peer(transport, identity, wall=time.time, rng=rng) as peer:
            await peer.discovery.publish(lambda: advert_for(model))
            await transport.announced.wait()
            now = own_state(transport.peer, transport.addresses, "published", (0, 1))
            join_s, publish_s = joined_s - started_s, trio.current_time() - joined_s
            write_json(state_file, MemberState(**msgspec.structs.asdict(now), join_s=join_s, publish_s=publish_s))
            await trio.sleep_forever()


async def live_until_stdin_closes(bootstrap: Sequence[str], model: ModelId, state_file: Path) -> None:
    """Whoever started us holds the other end: when it is gone, however it ended, so are we."""
    async with trio.open_nursery() as tasks:
        tasks.start_soon(live, bootstrap, model, state_file)
        stdin = trio.lowlevel.FdStream(STDIN)
        while await stdin.receive_some():
            pass
        tasks.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", action="append", required=True)
    parser.add_argument("--model", required=True, type=ModelId)
    parser.add_argument("--state", required=True, type=Path)
    given = parser.parse_args()
    trio.run(live_until_stdin_closes, given.bootstrap, given.model, given.state)


if __name__ == "__main__":
    main()
