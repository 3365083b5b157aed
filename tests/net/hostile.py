"""Hostile bytes against any protocol of a running node."""

import struct
from collections.abc import Sequence

import trio
from hypothesis import strategies as st

from p2pgrid.errors import PeerUnavailable
from p2pgrid.net.transport import Transport
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import Contact, Goodbye, Hello, Ping

FOUR_GIB_HEADER = struct.pack("!I", 2**32 - 1)


def payloads() -> st.SearchStrategy[list[bytes]]:
    """What a rogue may write to a stream: noise, frames of noise, huge headers, cut and doubled messages."""
    noise = st.binary(max_size=400)
    framed = noise.map(lambda data: struct.pack("!I", len(data)) + data)
    sensible = st.sampled_from(
        [frame(Hello("rogue", 2**31 - 1)), frame(Ping(0)), frame(Goodbye("")), frame(Hello("", 0))]
    )
    cut = st.tuples(sensible, st.integers(0, 20)).map(lambda pair: pair[0][: pair[1]])
    piece = st.one_of(noise, framed, sensible, cut, st.just(FOUR_GIB_HEADER))
    return st.lists(piece, max_size=6)


async def assert_survives(
    node: Transport, rogue: Transport, protocol: str, payloads: Sequence[bytes], *, wait_s: float = 1.0
) -> None:
    """Let `rogue` write `payloads` to `protocol` of `node`, in one stream each and all in one stream.

    The node must end every such stream or ignore it; afterwards it must still take a new one.
    """
    contact = Contact(node.peer, node.addresses)
    for data in [*payloads, b"".join(payloads)]:
        stream = await rogue.open_stream(contact, protocol)
        try:
            await stream.send_all(data)
            with trio.move_on_after(wait_s):
                while await stream.receive_some():
                    pass
        except PeerUnavailable:
            pass  # cut off, as it should be
        finally:
            await stream.reset()
    stream = await rogue.open_stream(contact, protocol)
    await stream.reset()
