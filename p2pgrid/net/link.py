"""One link: the tasks that read, write, deliver and keep time around a `LinkState`."""

from collections.abc import Callable

import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.net.delivery import Delivery, OnMessage, OnMessageNowait, once
from p2pgrid.net.inbox import Inbox
from p2pgrid.net.link_state import LinkState, cost_of
from p2pgrid.net.outgoing import Outgoing
from p2pgrid.net.transport import ByteStream
from p2pgrid.settings import LinkSettings
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.trace import now as trace_now
from p2pgrid.wire.codec import HEADER, FrameBuffer, decode, decode_link, frame
from p2pgrid.wire.messages import Goodbye, Hello, LinkMessage, SessionMessage, Step

QUEUE_BYTES_MAX = 1024 * 1024
"""Frames that wait to be written; a sender waits while there are more."""


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
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self.peer = stream.peer
        self.state = LinkState(settings, agent, trio.current_time())
        self.ended = trio.Event()
        self._settings = settings
        self._stream = stream
        self._on_end = on_end
        self._tracer = tracer
        self._frames = FrameBuffer()
        self._early: list[bytes] = []
        self._outgoing = Outgoing()
        self._inbox = Inbox()
        self._on_message_nowait: OnMessageNowait | None = None
        self._on_handed_over: Callable[[], None] | None = None
        self._delivering = False
        self._sending = trio.Lock()
        self._room = trio.lowlevel.ParkingLot()
        self._answer = trio.lowlevel.ParkingLot()
        self._to_write = trio.Event()
        self._writer_waits = False
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
        data = b"".join(map(frame, self.state.take_control(now)))
        await self._stream.send_all(data)
        self.state.sent(len(data), now, trio.current_time())

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
        data, cost = self._framed(message)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._enqueue(message, data, cost):
            self._write_now()
            return  # The common case costs no turn of the scheduler: latency of a decode step is made of those.
        async with self._sending:  # first come, first served: messages of one sender keep their order
            while not self._has_room(cost):
                await self._room.park()
            self._put_in_queue(message, data, cost)
            self._to_write.set()

    def try_send(self, message: SessionMessage, *, more: bool = False) -> bool:
        """Send one message in the caller's own turn; False when it would have to wait, be it behind others.

        With `more` it is kept until `flush`, or the next call without: they go in one write. Raises PeerUnavailable.
        """
        data, cost = self._framed(message)
        sent = self._enqueue(message, data, cost)
        if not more:
            self._write_now()
        return sent

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

    async def run(
        self,
        on_message: OnMessage,
        on_message_nowait: OnMessageNowait | None = None,
        on_handed_over: Callable[[], None] | None = None,
    ) -> None:
        """Run a greeted link until it ends. Errors of `on_message` other than PeerMisbehaved come out."""
        self._on_message_nowait = on_message_nowait
        self._on_handed_over = on_handed_over
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

    def _framed(self, message: SessionMessage) -> tuple[bytes, int]:
        """Its frame, and what that costs. Raises PeerUnavailable when the peer takes none of that size."""
        data = frame(message)
        cost = cost_of(len(data))
        if not self.state.fits_at_all(cost):
            raise PeerUnavailable(f"{self.peer} takes no message of {len(data)} bytes")
        return data, cost

    def _has_room(self, cost: int) -> bool:
        if self.ended.is_set():
            raise PeerUnavailable(f"the link to {self.peer} was lost")
        return self._outgoing.nbytes < QUEUE_BYTES_MAX and self.state.may_send(cost)

    def _enqueue(self, message: SessionMessage, data: bytes, cost: int) -> bool:
        if not self._has_room(cost) or self._sending.locked():
            return False
        self._put_in_queue(message, data, cost)
        return True

    def _put_in_queue(self, message: SessionMessage, data: bytes, cost: int) -> None:
        self.state.spend(cost)
        self._outgoing.append(data, message)
        self._note("queued", message)

    def flush(self) -> None:
        """Write what `try_send` kept."""
        if self._outgoing.nbytes and not self.ended.is_set():
            self._write_now()

    def _write_now(self) -> None:
        """Write what is queued in the caller's own turn, if the writer has nothing else to do; else wake it."""
        if not self._writer_waits or self._to_write.is_set():
            self._to_write.set()
            return
        now = trio.current_time()
        data, messages = self._outgoing.take_all()
        try:
            if not self._stream.try_send(data):
                self._outgoing.put_back(data, messages)
                self._to_write.set()
                return
        except PeerUnavailable as error:
            self.end(str(error))
            return
        self.state.sent(len(data), now, now, idle_before=True)
        if self._stream.unsent or self.state.bandwidth.wants_ping:
            self._to_write.set()
        for message in messages:
            self._note("written", message)

    def _note(self, event: str, message: LinkMessage, at_s: float | None = None) -> None:
        if self._tracer is not NO_TRACE and isinstance(message, Step):
            self._tracer.note(event, message.session, message.position, at_s)

    # ── its tasks ────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self) -> None:
        idle = True
        try:
            while True:
                began = trio.current_time()
                data, written = self._outgoing.next_write(self.state, began)
                if not data and not self._stream.unsent:
                    self._flushed.set()
                    self._to_write = trio.Event()
                    self._writer_waits = True
                    await self._to_write.wait()
                    self._writer_waits = False
                    idle = True
                    continue
                await self._stream.send_all(data)
                self.state.sent(len(data), began, trio.current_time(), idle_before=idle)
                idle = False
                self._room.unpark_all()
                for message in written:
                    self._note("written", message)
        except PeerUnavailable as error:
            self.end(str(error))

    async def _read(self) -> None:
        try:
            self._take(self._early, trio.current_time())
            while data := await self._stream.receive_some():
                now = trio.current_time()
                self.state.heard(now)
                self._take(self._frames.feed(data), now)
            self._inbox.put("the peer closed the link")
        except (PeerUnavailable, PeerMisbehaved) as error:
            self.end(str(error))

    def _take(self, payloads: list[bytes], now: float) -> None:
        read_at_s = trace_now() if self._tracer is not NO_TRACE else 0.0
        handed_over = False
        try:
            for payload in payloads:
                message = decode_link(payload)
                self._note("read", message, read_at_s)
                self._note("decoded", message)
                frame_bytes = HEADER.size + len(payload)
                match self.state.received(message, frame_bytes, now):
                    case None:
                        self._to_write.set()
                        self._room.unpark_all()
                        self._answer.unpark_all()
                    case Goodbye(reason=reason):
                        self._inbox.put(f"the peer said goodbye: {reason}")
                    case to_deliver:
                        if self._deliver_now(to_deliver, cost_of(frame_bytes)):
                            handed_over = True
                        else:
                            self._inbox.put(to_deliver, cost_of(frame_bytes))
        finally:
            if handed_over and self._on_handed_over is not None:
                self._on_handed_over()

    def _deliver_now(self, message: SessionMessage, cost: int) -> bool:
        """In the reader's own turn, when nothing is before it and nobody has to wait: that saves a turn."""
        if self._on_message_nowait is None or self._inbox or self._delivering or self.ended.is_set():
            return False
        self._note("delivered", message)
        return self._on_message_nowait(Delivery(self.peer, message, once(self._consumed, cost)))

    async def _deliver(self, on_message: OnMessage) -> None:
        try:
            while True:
                await self._inbox.arrival()
                if self.ended.is_set():
                    return  # cut off, not finished: nobody may act for a peer whose loss was told already
                item, cost = self._inbox.take()
                if isinstance(item, str):
                    self.end(item)
                    return
                self._note("delivered", item)
                self._delivering = True
                await on_message(Delivery(self.peer, item, once(self._consumed, cost)))
                self._delivering = False
        except PeerMisbehaved as error:
            self.end(str(error))

    def _consumed(self, cost: int) -> None:
        if self.state.consumed(cost):
            self._to_write.set()

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep_until(self.state.next_tick(trio.current_time()))
            if not self.state.tick(trio.current_time()):
                self.end(f"{self.peer} was silent for {self._settings.silence_s_max:g} s")
                return
            self._to_write.set()
