"""One link: the tasks that read, write, deliver and keep time around a `LinkState`."""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.link_state import LinkState, cost_of
from p2pgrid.net.transport import ByteStream
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.codec import HEADER, FrameBuffer, decode, frame
from p2pgrid.wire.messages import Goodbye, Hello, LinkMessage, SessionMessage

WRITE_BYTES_MAX = 65_500
"""Frames are joined up to this size: what fits one message of the encryption underneath."""

QUEUE_BYTES_MAX = 1024 * 1024
"""Frames that wait to be written; a sender waits while there are more."""


@dataclass(frozen=True)
class Delivery:
    """A message of `peer`. Call `release` once it is consumed; only then the peer may send as much again."""

    peer: PeerId
    message: SessionMessage
    release: Callable[[], None]


OnMessage = Callable[[Delivery], Awaitable[None]]


class Link:
    """One stream between two peers, from its first frame to its end.

    `on_end(link, reason)` is called once, at the moment the link ends for whatever reason.
    """

    def __init__(
        self,
        stream: ByteStream,
        settings: LinkSettings,
        agent: str,
        on_end: "Callable[[Link, str], None]",
    ) -> None:
        self.peer = stream.peer
        self.state = LinkState(settings, agent, trio.current_time())
        self.ended = trio.Event()
        self._settings = settings
        self._stream = stream
        self._on_end = on_end
        self._frames = FrameBuffer()
        self._early: list[bytes] = []
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._inbox: deque[SessionMessage | str] = deque()
        self._inbox_costs: deque[int] = deque()
        self._sending = trio.Lock()
        self._room = trio.lowlevel.ParkingLot()
        self._answer = trio.lowlevel.ParkingLot()
        self._to_write = trio.Event()
        self._to_deliver = trio.Event()
        self._flushed = trio.Event()

    # ── before the link is up ────────────────────────────────────────────────────────────────────────────

    async def read_greeting(self) -> Hello | Goodbye:
        """The first message of the other side. Raises PeerMisbehaved, PeerUnavailable."""
        while not self._early:
            data = await self._stream.receive_some()
            if not data:
                raise PeerUnavailable(f"{self.peer} closed the link before its first message")
            self._early = self._frames.feed(data)
        payload = self._early.pop(0)
        message: Hello | Goodbye = decode(payload, Hello | Goodbye)
        self.state.received(message, HEADER.size + len(payload), trio.current_time())
        return message

    async def greet(self) -> None:
        """Write our Hello; of the side that dialled, before it reads the other's."""
        now = trio.current_time()
        await self._stream.send_all(b"".join(map(frame, self.state.take_control(now))))
        self.state.sent(now)

    async def refuse(self, reason: str) -> None:
        """Say why there will be no link, and let go. Never raises, never waits long."""
        with trio.move_on_after(self._settings.close_s_max):
            try:
                await self._stream.send_all(frame(Goodbye(reason)))
            except PeerUnavailable:
                return
            finally:
                await self._stream.aclose()

    async def let_go(self) -> None:
        """Let go of the stream at once."""
        with trio.CancelScope(shield=True):
            await self._stream.reset()

    # ── while the link is up ─────────────────────────────────────────────────────────────────────────────

    async def send(self, message: SessionMessage) -> None:
        """Queue one message; waits for the peer's credit and for room. Raises PeerUnavailable."""
        data = frame(message)
        cost = cost_of(len(data))
        if not self.state.fits_at_all(cost):
            raise PeerUnavailable(f"{self.peer} takes no message of {len(data)} bytes")
        if not self._sending.locked() and self._has_room(cost):
            # The common case costs no turn of the scheduler: latency of a decode step is made of those.
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._has_room(cost) and not self._sending.locked():
                self._enqueue(data, cost)
                return
        async with self._sending:  # first come, first served: messages of one sender keep their order
            while not self._has_room(cost):
                await self._room.park()
            self._enqueue(data, cost)

    def end(self, reason: str) -> None:
        """The link is over. Wakes everybody who waits for it; the first reason counts."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._room.unpark_all()
        self._answer.unpark_all()
        self._on_end(self, reason)

    async def answers(self, within_s: float) -> bool:
        """Whether the peer answers a ping that is sent on this link now."""
        earlier = self.state.pinged
        self.state.ask_for_ping()
        self._to_write.set()
        with trio.move_on_after(within_s):
            while self.state.answered <= earlier and not self.ended.is_set():
                await self._answer.park()
        return self.state.answered > earlier and not self.ended.is_set()

    async def finish(self, reason: str) -> None:
        """Say goodbye after all that is queued, and close. Bounded by the caller."""
        self.state.say_goodbye(reason)
        self._flushed = trio.Event()
        self._to_write.set()
        await self._flushed.wait()
        await self._stream.aclose()

    async def run(self, on_message: OnMessage) -> None:
        """Run a greeted link until it ends. Errors of `on_message` other than PeerMisbehaved come out."""
        self.state.ask_for_ping()
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._write)
            tasks.start_soon(self._deliver, on_message)
            tasks.start_soon(self._read)
            tasks.start_soon(self._keep_time)
            try:
                await self.ended.wait()
            finally:
                self.end("this node closed the link")
                # The stream first: a writer stuck in it must not be cancelled half-way, it fails instead.
                await self.let_go()
            tasks.cancel_scope.cancel()

    def _has_room(self, cost: int) -> bool:
        if self.ended.is_set():
            raise PeerUnavailable(f"the link to {self.peer} was lost")
        return self._queued_bytes < QUEUE_BYTES_MAX and self.state.may_send(cost)

    def _enqueue(self, data: bytes, cost: int) -> None:
        self.state.spend(cost)
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._to_write.set()

    # ── its tasks ────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self) -> None:
        try:
            while True:
                data = self._next_write()
                if not data:
                    self._flushed.set()
                    self._to_write = trio.Event()
                    await self._to_write.wait()
                    continue
                await self._stream.send_all(data)
                self.state.sent(trio.current_time())
                self._room.unpark_all()
        except PeerUnavailable as error:
            self.end(str(error))

    def _next_write(self) -> bytes:
        parts = [frame(message) for message in self.state.take_control(trio.current_time())]
        size = sum(map(len, parts))
        while self._queue and (not size or size + len(self._queue[0]) <= WRITE_BYTES_MAX):
            data = self._queue.popleft()
            self._queued_bytes -= len(data)
            size += len(data)
            parts.append(data)
        if not parts and (goodbye := self.state.take_goodbye()) is not None:
            parts.append(frame(goodbye))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read(self) -> None:
        try:
            self._take(self._early)
            while data := await self._stream.receive_some():
                self.state.heard(trio.current_time())
                self._take(self._frames.feed(data))
            self._put("the peer closed the link")
        except (PeerUnavailable, PeerMisbehaved) as error:
            self.end(str(error))

    def _take(self, payloads: list[bytes]) -> None:
        now = trio.current_time()
        for payload in payloads:
            message: LinkMessage = decode(payload, LinkMessage)
            frame_bytes = HEADER.size + len(payload)
            match self.state.received(message, frame_bytes, now):
                case None:
                    self._to_write.set()
                case Goodbye(reason=reason):
                    self._put(f"the peer said goodbye: {reason}")
                case to_deliver:
                    self._inbox_costs.append(cost_of(frame_bytes))
                    self._put(to_deliver)
        self._room.unpark_all()
        self._answer.unpark_all()

    def _put(self, item: SessionMessage | str) -> None:
        """A message, or the reason why it was the last one."""
        self._inbox.append(item)
        self._to_deliver.set()

    async def _deliver(self, on_message: OnMessage) -> None:
        try:
            while True:
                while not self._inbox:
                    self._to_deliver = trio.Event()
                    await self._to_deliver.wait()
                if self.ended.is_set():
                    return  # cut off, not finished: nobody may act for a peer whose loss was told already
                item = self._inbox.popleft()
                if isinstance(item, str):
                    self.end(item)
                    return
                await on_message(Delivery(self.peer, item, self._releaser(self._inbox_costs.popleft())))
        except PeerMisbehaved as error:
            self.end(str(error))

    def _releaser(self, cost: int) -> Callable[[], None]:
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                if self.state.consumed(cost):
                    self._to_write.set()

        return release

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(self.state.next_tick(trio.current_time()))
            if not self.state.tick(trio.current_time()):
                self.end(f"{self.peer} was silent for {self._settings.silence_s_max:g} s")
                return
            self._to_write.set()
