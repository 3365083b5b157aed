"""A TCP connection with libp2p's Noise handshake and nothing above it: no muxer, no choice of protocol.

Handshake and framing are those of https://github.com/libp2p/specs/tree/master/noise (XX, Ed25519 identities; each
message is a u16 length, big-endian, and so many bytes), after which every message is one piece of the stream. An
empty one is its end: it is authenticated, which TCP's own end is not.
"""

import os
import socket
import struct
from collections.abc import Awaitable
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.wire.signing import Identity
from p2pgrid.wire.transfer_messages import DIRECT_PROTOCOL

TAG_BYTES = 16
PIECE_BYTES_MAX = 65_535 - TAG_BYTES
"""What one Noise message carries."""

BURST_BYTES_MAX = 4 * PIECE_BYTES_MAX
"""Encrypted and written in one go; the peer decrypts it while the next is encrypted."""

READ_BYTES = 256 * 1024
CLOSE_S_MAX = 0.4

_LENGTH = struct.Struct("!H")
_ABORT = struct.pack("ii", 1, 0)
_SOCKET_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class NoiseStream:
    """See `net.transport.ByteStream`. Made by `Handshakes`; owns its connection."""

    def __init__(self, stream: trio.SocketStream, peer: PeerId, noise: Any) -> None:
        self._stream = stream
        self._peer = peer
        self._encrypt = noise.cipher_state_encrypt.encrypt_with_ad
        self._decrypt = noise.cipher_state_decrypt.decrypt_with_ad
        self._sealed = bytearray()
        self._unsent = b""
        self._writing = False
        self._reading = False
        self._finished = False
        self._closed = False
        self._reads = trio.lowlevel.ParkingLot()

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise PeerUnavailable(f"the connection to {self._peer} is closed")
        self._writing = True
        try:
            # Never cut in half: what is encrypted and not sent would be missing from the order of the nonces.
            with trio.CancelScope(shield=True):
                if self._unsent:
                    unsent, self._unsent = self._unsent, b""
                    await self._stream.send_all(unsent)
                for start in range(0, len(data), BURST_BYTES_MAX):
                    await self._stream.send_all(self._seal(data[start : start + BURST_BYTES_MAX]))
        except _SOCKET_ERRORS as error:
            raise PeerUnavailable(f"the connection to {self._peer} broke: {_brief(error)}") from error
        finally:
            self._writing = False

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def try_send(self, data: bytes) -> bool:
        if self._closed or self._writing or self._unsent or len(data) > BURST_BYTES_MAX:
            return False
        sealed = self._seal(data)
        try:
            written = os.write(self._stream.socket.fileno(), sealed)
        except BlockingIOError:
            written = 0
        except OSError as error:
            raise PeerUnavailable(f"the connection to {self._peer} broke: {_brief(error)}") from error
        self._unsent = sealed[written:]
        return True

    async def receive_some(self) -> bytes:
        return await self._receive(READ_BYTES)

    async def receive_message(self) -> bytes:
        """One Noise message, for what comes before the stream proper; else as `receive_some`."""
        return await self._receive(1)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S_MAX):
            await self._finish()
        self._stream.socket.close()

    async def reset(self) -> None:
        self._closed = True
        if self._stream.socket.fileno() >= 0:
            self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            self._stream.socket.close()

    def _seal(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        for start in range(0, len(data) or 1, PIECE_BYTES_MAX):
            piece = data[start : start + PIECE_BYTES_MAX]
            parts += [_LENGTH.pack(len(piece) + TAG_BYTES), self._encrypt(None, piece)]
        return b"".join(parts)

    async def _receive(self, messages_max: int) -> bytes:
        try:
            while not self._finished:
                if data := self._open_whole(messages_max):
                    return data
                if not self._finished:
                    await self._read()
        except (*_SOCKET_ERRORS, InvalidTag) as error:
            raise PeerUnavailable(f"the connection from {self._peer} broke: {_brief(error)}") from error
        return b""

    def _open_whole(self, messages_max: int) -> bytes:
        """The text of the whole messages that are here, up to the end mark. Raises InvalidTag."""
        sealed = self._sealed
        texts: list[bytes] = []
        taken = 0
        with memoryview(sealed) as view:
            while not self._finished and len(texts) < messages_max and len(sealed) - taken >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(sealed, taken)
                start = taken + _LENGTH.size
                if start + length > len(sealed):
                    break
                with view[start : start + length] as message:
                    text = self._decrypt(None, message)
                texts.append(text)
                self._finished = not text
                taken = start + length
        del sealed[:taken]
        return texts[0] if len(texts) == 1 else b"".join(texts)

    async def _read(self) -> None:
        """Take in what the socket has. Raises PeerUnavailable when it has ended."""
        if self._reading or self._stream.socket.fileno() < 0:
            raise PeerUnavailable(f"the connection from {self._peer} is closed")
        self._reading = True
        try:
            # Almost always nothing is here yet: to try first, as trio's own stream does, costs an error each time.
            await trio.lowlevel.wait_readable(self._stream.socket)
            data = os.read(self._stream.socket.fileno(), READ_BYTES)
        except BlockingIOError:
            return  # it was a false alarm
        finally:
            self._reading = False
            self._reads.unpark_all()
        if not data:
            raise PeerUnavailable(f"the connection from {self._peer} was cut off")
        self._sealed += data

    async def _finish(self) -> None:
        """Write the end mark, and wait for the peer to end too: to close before could cost it what is on its way."""
        if self._writing:
            return  # a writer is stuck; what it began can have no end
        try:
            await self._stream.send_all(self._unsent + self._seal(b""))
            await self._stream.send_eof()
            while True:
                if self._reading:
                    await self._reads.park()
                else:
                    await self._read()
                    self._sealed.clear()
        except (*_SOCKET_ERRORS, PeerUnavailable):
            return


class Handshakes:
    """Makes `NoiseStream`s as one identity."""

    def __init__(self, identity: Identity) -> None:
        self._key_pair = create_new_key_pair(identity.seed)
        self._noise_key = create_new_x25519_key_pair().private_key
        self._id = ID.from_pubkey(self._key_pair.public_key)

    async def initiate(self, stream: trio.SocketStream, peer: PeerId) -> NoiseStream:
        """As the side that dialled. Raises PeerMisbehaved when it is not `peer` who answers, or not with this."""
        pattern = self._pattern()
        return await self._shake(stream, pattern.handshake_outbound(_HandshakeWire(stream), ID.from_string(peer)))

    async def respond(self, stream: trio.SocketStream) -> NoiseStream:
        """As the side that was dialled; the stream says by whom. Raises PeerMisbehaved."""
        return await self._shake(stream, self._pattern().handshake_inbound(_HandshakeWire(stream)))

    def _pattern(self) -> Any:
        # The prologue: nothing said here can be passed on to a port of libp2p, or the other way round.
        return PatternXX(self._id, self._key_pair.private_key, self._noise_key, prologue=DIRECT_PROTOCOL.encode())

    async def _shake(self, stream: trio.SocketStream, handshake: Awaitable[Any]) -> NoiseStream:
        try:
            session = await handshake
        except Exception as error:  # owns this failure: a stranger's bytes make libp2p raise anything
            raise PeerMisbehaved(f"no Noise handshake: {_brief(error)}") from error
        return NoiseStream(stream, PeerId(str(session.get_remote_peer())), session.conn.noise_state.noise_protocol)


class _HandshakeWire:
    """What libp2p's handshake reads and writes, and not a byte more."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)


def _brief(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
