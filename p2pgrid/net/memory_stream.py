"""Streams of `memory_transport`: two pipes, each with a delay and room for so many bytes."""

from collections import deque
from typing import Protocol

import trio

from p2pgrid.errors import PeerUnavailable
from p2pgrid.ids import PeerId

PIPE_BYTES_MAX = 256 * 1024


class Wires(Protocol):
    """What a pipe asks the network."""

    def held(self, one: PeerId, other: PeerId) -> bool: ...
    def delay_s(self, one: PeerId, other: PeerId) -> float: ...


class Pipe:
    """One direction of a stream: bytes come out later than they went in, and in order."""

    def __init__(self, wires: Wires, sender: PeerId, receiver: PeerId, bandwidth_bytes_s: float | None) -> None:
        self._wires = wires
        self._sender = sender
        self._receiver = receiver
        self._bandwidth_bytes_s = bandwidth_bytes_s
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._wire_free_at_s = 0.0
        self._arrives_at_s = 0.0
        self._broken: str | None = None
        self._sender_left = False
        self._receiver_left = False
        self._changed = trio.Event()

    def wake(self) -> None:
        """Something changed: whoever waits looks again."""
        self._changed.set()
        self._changed = trio.Event()

    def break_off(self, reason: str, *, sender: bool = False, receiver: bool = False) -> None:
        """Lose what is under way. The side that did it knows at once, the other when it can hear of it."""
        self._sender_left |= sender
        self._receiver_left |= receiver
        if self._broken is None:
            self._broken = reason
            self._chunks.clear()
            self._bytes = 0
        self.wake()

    def leave(self) -> None:
        """The sender writes no more; what it wrote still arrives."""
        self._sender_left = True
        self.wake()

    def finish(self) -> None:
        """The receiver reads `b""` once all before it is read."""
        if self._broken is None:
            self._put(b"")

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            held = self._wires.held(self._sender, self._receiver)
            if self._sender_left or (self._broken is not None and not held):
                raise PeerUnavailable(f"{self._receiver}: {self._broken or 'the stream was closed'}")
            if self._bytes < PIPE_BYTES_MAX and self._broken is None:
                break
            await self._changed.wait()
        if data:
            self._put(data)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            held = self._wires.held(self._sender, self._receiver)
            if self._receiver_left or (self._broken is not None and not held):
                raise PeerUnavailable(f"{self._sender}: {self._broken}")
            changed = self._changed
            if not self._chunks or held:
                await changed.wait()
                continue
            arrives_at_s, data = self._chunks[0]
            if arrives_at_s > trio.current_time():
                with trio.move_on_at(arrives_at_s):
                    await changed.wait()
                continue
            if data:  # the end stays where it is, to be read again
                self._chunks.popleft()
                self._bytes -= len(data)
                self.wake()
            return data

    def _put(self, data: bytes) -> None:
        now = trio.current_time()
        if self._bandwidth_bytes_s is not None:
            self._wire_free_at_s = max(self._wire_free_at_s, now) + len(data) / self._bandwidth_bytes_s
            now = self._wire_free_at_s
        self._arrives_at_s = max(self._arrives_at_s, now + self._wires.delay_s(self._sender, self._receiver))
        self._chunks.append((self._arrives_at_s, data))
        self._bytes += len(data)
        self.wake()


class MemoryStream:
    """One end of a stream; see `net.transport.ByteStream`."""

    def __init__(self, peer: PeerId, *, outgoing: Pipe, incoming: Pipe) -> None:
        self._peer = peer
        self._outgoing = outgoing
        self._incoming = incoming
        self.is_closed = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def send_all(self, data: bytes) -> None:
        await self._outgoing.send(data)

    unsent = False

    def try_send(self, data: bytes) -> bool:
        return False

    async def receive_some(self) -> bytes:
        return await self._incoming.receive()

    async def aclose(self) -> None:
        self.close_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        if not self.is_closed:  # what was written before a polite end still arrives
            self.break_off("the stream was reset")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close_nowait(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._outgoing.finish()
            self._outgoing.leave()
            self._incoming.break_off("the stream was closed", receiver=True)

    def break_off(self, reason: str) -> None:
        self.is_closed = True
        self._outgoing.break_off(reason, sender=True)
        self._incoming.break_off(reason, receiver=True)

    def wake(self) -> None:
        self._outgoing.wake()
        self._incoming.wake()
