"""`python -m p2pgrid.bench.echo`: a peer that sends every step back, over a link and over plain TCP."""

import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE

import msgspec
import trio

from p2pgrid.errors import LocalFault, PeerUnavailable
from p2pgrid.folders import temporary_folder
from p2pgrid.ids import PeerId
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.net.links import Delivery, Links
from p2pgrid.settings import LinkSettings
from p2pgrid.storage.identity import ephemeral_identity
from p2pgrid.swarm.processes import Member, end_members
from p2pgrid.wire.messages import Contact

HOST = "127.0.0.1"
LENGTH = struct.Struct("!I")
READ_BYTES = 256 * 1024


class Whereabouts(msgspec.Struct, frozen=True):
    """How an echo peer is reached; the one line that it prints."""

    peer: str
    addresses: tuple[str, ...]
    tcp_port: int

    @property
    def contact(self) -> Contact:
        return Contact(PeerId(self.peer), self.addresses)


async def read_exactly(stream: trio.SocketStream, nbytes: int) -> bytes:
    """Raises trio.BrokenResourceError when the stream ends before that."""
    data = bytearray()
    while len(data) < nbytes:
        more = await stream.receive_some(min(READ_BYTES, nbytes - len(data)))
        if not more:
            raise trio.BrokenResourceError("the stream ended")
        data += more
    return bytes(data)


@asynccontextmanager
async def open_echo() -> AsyncIterator[Whereabouts]:
    """An echo peer in a process of its own, ended on every exit. Raises LocalFault."""
    with temporary_folder() as folder:
        log = folder / "log"
        with log.open("wb") as sink:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", __name__],
                stdin=PIPE,
                stdout=PIPE,
                stderr=sink,
                start_new_session=True,  # a Ctrl-C in the terminal reaches us alone
            )
        member = Member("echo", process, log, folder / "state.json")
        assert process.stdout is not None
        try:
            yield await _whereabouts(member, process.stdout)
        finally:
            await end_members([member])
            await process.stdout.aclose()


async def _whereabouts(member: Member, stdout: trio.abc.ReceiveStream) -> Whereabouts:
    line = b""
    while data := await stdout.receive_some():
        line += data
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Whereabouts)
    await member.process.wait()
    raise LocalFault(member.why_it_ended())


# ── the process itself ───────────────────────────────────────────────────────────────────────────────────


async def _echo_frames(stream: trio.SocketStream) -> None:
    try:
        while True:
            header = await read_exactly(stream, LENGTH.size)
            (nbytes,) = LENGTH.unpack(header)
            await stream.send_all(header + await read_exactly(stream, nbytes))
    except trio.BrokenResourceError:
        return


async def _main() -> None:
    identity = ephemeral_identity()

    async def on_message(delivery: Delivery) -> None:
        try:
            await links.send(delivery.peer, delivery.message)
        except PeerUnavailable:
            return
        finally:
            delivery.release()

    async with open_libp2p(identity, [], [], dht_server=False) as transport, trio.open_nursery() as tasks:
        links = Links(transport, LinkSettings(), on_message=on_message, on_lost=lambda peer, reason: None)
        await tasks.start(links.run)
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        tasks.start_soon(trio.serve_listeners, _echo_frames, [listener])
        here = Whereabouts(transport.peer, transport.addresses, listener.socket.getsockname()[1])
        sys.stdout.buffer.write(msgspec.json.encode(here) + b"\n")
        sys.stdout.buffer.flush()
        async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
            while await stdin.receive_some():
                pass  # whoever started us says nothing, and ends us by going away
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)
