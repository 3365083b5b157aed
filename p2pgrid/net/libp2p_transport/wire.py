"""libp2p's TCP and yamux with fewer turns of the scheduler, and writes that are never cut in half.

As it comes, a message of 16 KiB costs each side a dozen turns: a lock and a system call for each length and each
body, and a window update for every read. What travels is the same.
"""

import struct
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import TYPE_DATA, YAMUX_HEADER_FORMAT, Yamux
from libp2p.transport.tcp import tcp

SOCKET_READ_BYTES = 256 * 1024
STREAM_READ_BYTES = 256 * 1024

CHUNK_BYTES_MAX = 65_507
"""With yamux's header of 12 bytes this is the most that one Noise message carries."""

RETURN_FIRST_BYTES = 128 * 1024
"""Half of the window that a yamux stream begins with."""

WINDOW_GROWTH_BYTES = 4 * 1024 * 1024
"""Added once a stream has shown that it is no short exchange; what may be on its way at once."""

RETURN_BYTES = 1024 * 1024
WINDOW_POLL_S = 0.005


class BufferedTcpStream(TrioTCPStream):  # type: ignore[misc]
    """Reads what the socket has in one go. One reader at a time, and one writer: yamux sees to that."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._read = b""
        self._taken = 0

    async def read(self, n: int | None = None) -> bytes:
        if self._taken == len(self._read):
            try:
                self._read = bytes(await self.stream.receive_some(SOCKET_READ_BYTES))
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error
            except trio.ClosedResourceError:
                return b""
            self._taken = 0
        stop = len(self._read) if n is None else min(len(self._read), self._taken + n)
        data = self._read[self._taken : stop]
        self._taken = stop
        return data


class SteadyYamux(Yamux):  # type: ignore[misc]
    """Yamux whose writes are never cut in half.

    A write that is cancelled after its bytes were encrypted leaves the two sides with different Noise nonces:
    the connection is dead, and nobody notices. So once a write has begun, only closing the socket ends it.
    """

    async def _write_frame(self, data: bytes) -> None:
        try:
            self._write_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._write_lock.acquire()
        try:
            with trio.CancelScope(shield=True):
                await self.secured_conn.write(data)
        finally:
            self._write_lock.release()


# libp2p names these classes itself, whatever muxer or transport it is given to use.
tcp.TrioTCPStream = BufferedTcpStream
muxer_multistream.Yamux = SteadyYamux


def hosts_of(muxed: Any) -> tuple[str, str] | None:
    """IP addresses of a connection, ours and the peer's; None when it is gone."""
    raw = muxed.secured_conn.conn.read_writer.read_write_closer
    try:
        own, theirs = raw.stream.stream.socket.getsockname(), raw.stream.stream.socket.getpeername()
    except OSError:
        return None
    return str(own[0]), str(theirs[0])


class QuickStream:
    """Reads and writes of one yamux stream; one reader and one writer at a time."""

    def __init__(self, muxed: Any) -> None:
        self._muxed = muxed
        self._unreturned = 0
        self._return_at = RETURN_FIRST_BYTES

    async def write(self, data: bytes) -> None:
        """Raises what libp2p raises. Waits for as long as the peer's window is closed."""
        muxed = self._muxed
        sent = 0
        while sent < len(data):
            if muxed.send_closed or muxed.closed or muxed.conn.event_shutting_down.is_set():
                raise MuxedStreamError("the stream is closed")
            size = min(muxed.send_window, CHUNK_BYTES_MAX, len(data) - sent)
            if size <= 0:
                await trio.sleep(WINDOW_POLL_S)
                continue
            muxed.send_window -= size
            header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, muxed.stream_id, size)
            await muxed.conn._write_frame(header + data[sent : sent + size])
            sent += size

    async def read(self) -> bytes:
        """Some bytes. Raises what libp2p raises, MuxedStreamEOF at the end."""
        muxed = self._muxed
        data: bytes = await muxed.conn.read_stream(muxed.stream_id, STREAM_READ_BYTES)
        self._unreturned += len(data)
        if self._unreturned >= self._return_at:
            grant = self._unreturned
            if self._return_at == RETURN_FIRST_BYTES:
                self._return_at = RETURN_BYTES
                grant += WINDOW_GROWTH_BYTES
            self._unreturned = 0
            muxed.recv_window += grant
            await muxed.send_window_update(grant)
        return data
