"""All links of a node: one to each peer that it talks to, whoever of the two dialled.

When two peers dial each other at once, the stream that the one with the smaller id dialled becomes the link. A
peer that comes again while its old link is up gets through only if the old one no longer answers.
"""

from collections.abc import Callable

import structlog
import trio

from p2pgrid.errors import PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.delivery import Delivery, OnMessage, OnMessageNowait
from p2pgrid.net.link import Link
from p2pgrid.net.loopback import Loopback
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.settings import LinkSettings
from p2pgrid.trace import NO_TRACE, Tracer
from p2pgrid.wire.messages import STAGE_PROTOCOL, Contact, Goodbye, SessionMessage

__all__ = ["LINKS_MAX", "Delivery", "Links"]

log = structlog.get_logger()

LINKS_MAX = 512
AGENT = "p2pgrid"


def _nothing() -> None:
    """Nobody wants to know."""


class _Dial:
    """A link that we are about to make; whoever wants it waits for `done`."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self.greeted = False
        """Our Hello is on its way: from now on the other side may take this stream for the link."""
        self.failure: str | None = None


class Links:
    """Makes, keeps and ends the links of one node.

    `on_message(delivery)` is awaited in the order in which a peer sent, one at a time for each peer; when it
    raises PeerMisbehaved the link is cut. `on_message_nowait(delivery)`, if given, is asked first, in the same order
    and under the same rules; what it takes (True) costs no turn of the scheduler, and `on_message` does not get it.
    `on_handed_over()` follows when it has taken all that was read in one go.
    It is not asked for messages of this node to itself. `on_lost(peer, reason)` is called once for each link that
    ends, but not for those that `run` closes itself when it is cancelled. `tracer` notes what happens to steps.
    """

    def __init__(
        self,
        transport: Transport,
        settings: LinkSettings,
        *,
        on_message: OnMessage,
        on_lost: Callable[[PeerId, str], None],
        on_message_nowait: OnMessageNowait | None = None,
        on_handed_over: Callable[[], None] = _nothing,
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._on_message = on_message
        self._on_message_nowait = on_message_nowait
        self._on_handed_over = on_handed_over
        self._on_lost = on_lost
        self._tracer = tracer
        self._links: dict[PeerId, Link] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._loopback = Loopback(transport.peer, settings.window_bytes, tracer)
        self._arriving = 0
        self._tasks: trio.Nursery | None = None
        self._closing = False

    # ── what services call ───────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own all links until cancelled; then say goodbye on each and close them within `close_s_max`."""
        async with trio.open_nursery() as outer:
            await outer.start(self._own_links)
            self._transport.serve(STAGE_PROTOCOL, self._accept)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._closing = True
                try:
                    with trio.CancelScope(shield=True):
                        await self._say_goodbye()
                finally:
                    if self._tasks is not None:
                        self._tasks.cancel_scope.cancel()

    async def connect(self, contact: Contact) -> None:
        """Return when a link to that peer stands; at once when it does. Raises PeerUnavailable."""
        await trio.lowlevel.checkpoint_if_cancelled()
        peer = contact.peer
        if self._tasks is None or self._closing:
            raise PeerUnavailable(f"this node is closing its links; cannot dial {peer}")
        if peer == self._transport.peer or peer in self._links:
            return
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._dials[peer] = _Dial()
            self._tasks.start_soon(self._dial, contact, dial)
        await dial.done.wait()
        if dial.failure is not None:
            raise PeerUnavailable(dial.failure)

    async def send(self, peer: PeerId, message: SessionMessage) -> None:
        """Hand over one message; waits for the peer's credit and for room. Raises PeerUnavailable.

        Messages of one task to one peer arrive in the order in which they were sent.
        """
        if peer == self._transport.peer:
            await self._loopback.send(message)
            return
        await self._link_to(peer).send(message)

    def try_send(self, peer: PeerId, message: SessionMessage, *, more: bool = False) -> bool:
        """Hand over one message now. False when it would have to wait, be it behind others: then `send` it.

        With `more` it is held back until `flush`, or until something else goes to this peer. Raises PeerUnavailable.
        """
        if peer == self._transport.peer:
            return self._loopback.try_send(message)
        return self._link_to(peer).try_send(message, more=more)

    def flush(self, peer: PeerId) -> None:
        """Send what `try_send` held back for more to come. A link that is lost has told so already."""
        if peer in self._links:
            self._links[peer].flush()

    def _link_to(self, peer: PeerId) -> Link:
        link = self._links.get(peer)
        if link is None:
            raise PeerUnavailable(f"no link to {peer}")
        return link

    def is_up(self, peer: PeerId) -> bool:
        return peer in self._links or (peer == self._transport.peer and not self._closing)

    def rtt_s(self, peer: PeerId) -> float | None:
        """Smoothed round trip time; None before the first measurement. 0 to ourselves."""
        if peer == self._transport.peer:
            return 0.0
        link = self._links.get(peer)
        return link.state.rtt_s if link is not None else None

    def bandwidth_bytes_s(self, peer: PeerId) -> float | None:
        """Bytes per second that the link carries to that peer; None before it was measured, and to ourselves.

        Measured on bursts of 64 KiB or more; see `net.bandwidth`.
        """
        link = self._links.get(peer)
        return link.state.bandwidth.bytes_s if link is not None else None

    def peers(self) -> list[PeerId]:
        """Those whose link is up, ourselves left out."""
        return list(self._links)

    # ── the life of links ────────────────────────────────────────────────────────────────────────────────

    async def _own_links(self, *, task_status: trio.TaskStatus[None]) -> None:
        # Whoever is cancelled before this point has no `run` that would end what is shielded below.
        await trio.lowlevel.checkpoint_if_cancelled()
        # Shielded, so that on cancellation the links live on until they have said goodbye.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._loopback.run, self._on_message)
                task_status.started()
                await trio.sleep_forever()

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(self._settings.close_s_max):
            async with trio.open_nursery() as farewells:
                for link in list(self._links.values()):
                    farewells.start_soon(link.finish, "the node closes its links")

    def _new_link(self, stream: ByteStream) -> Link:
        return Link(stream, self._settings, AGENT, self._ended, self._tracer)

    def _up(self, link: Link, tasks: trio.Nursery) -> None:
        """From here on this is the link to its peer. No await between the decision for it and this."""
        self._links[link.peer] = link
        tasks.start_soon(link.run, self._on_message, self._on_message_nowait, self._on_handed_over)
        dial = self._dials.pop(link.peer, None)
        if dial is not None:
            dial.done.set()
            dial.scope.cancel()

    def _ended(self, link: Link, reason: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        if not self._closing:
            self._on_lost(link.peer, reason)

    # ── links that we dial ───────────────────────────────────────────────────────────────────────────────

    async def _dial(self, contact: Contact, dial: _Dial) -> None:
        peer = contact.peer
        failure = f"{peer} made no link within {self._settings.dial_s_max:g} s"
        with trio.move_on_after(self._settings.dial_s_max), dial.scope:
            try:
                await self._dial_once(contact, dial)
            except (PeerUnavailable, PeerMisbehaved) as error:
                failure = str(error)
        if not dial.done.is_set():
            del self._dials[peer]
            dial.failure = failure
            dial.done.set()

    async def _dial_once(self, contact: Contact, dial: _Dial) -> None:
        stream = await self._transport.open_stream(contact, STAGE_PROTOCOL)
        link = self._new_link(stream)
        up = False
        try:
            if dial.done.is_set() or self._tasks is None:
                return
            dial.greeted = True
            await link.greet()
            greeting = await link.read_greeting()
            if isinstance(greeting, Goodbye):
                if greeting.reason != _REFUSED_FOR_ANOTHER:
                    raise PeerUnavailable(f"{contact.peer} refused the link: {greeting.reason}")
                await dial.done.wait()  # the other side's own stream will be the link
            elif not dial.done.is_set():
                up = True
                self._up(link, self._tasks)
        finally:
            if not up:
                await link.let_go()

    # ── links that others dial ───────────────────────────────────────────────────────────────────────────

    async def _accept(self, stream: ByteStream) -> None:
        link = self._new_link(stream)
        if self._closing or len(self._links) + self._arriving >= LINKS_MAX:
            await link.refuse("no room for another link")
            return
        self._arriving += 1
        try:
            with trio.fail_after(self._settings.dial_s_max):
                if isinstance(await link.read_greeting(), Goodbye):
                    return
                refusal = await self._decide(link)
        except trio.TooSlowError:
            raise PeerMisbehaved(f"no Hello within {self._settings.dial_s_max:g} s") from None
        finally:
            self._arriving -= 1
        if refusal is not None or self._tasks is None:
            await link.refuse(refusal or "the node closes its links")
            return
        self._up(link, self._tasks)
        await link.ended.wait()

    async def _decide(self, link: Link) -> str | None:
        """None to take this stream for the link to its peer, else why not."""
        peer = link.peer
        while (old := self._links.get(peer)) is not None:
            # Either the peer lost the old link and we did not notice, or this stream is the one that it gave
            # up when both dialled at once. In the second case the old link answers.
            if await old.answers(self._settings.heartbeat_s):
                return _REFUSED_FOR_ANOTHER
            old.end("the peer made a new link")
        dial = self._dials.get(peer)
        if dial is not None and dial.greeted and self._transport.peer < peer:
            return _REFUSED_FOR_ANOTHER
        return "the node closes its links" if self._closing else None


_REFUSED_FOR_ANOTHER = "another stream is the link"
