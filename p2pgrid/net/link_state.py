"""The protocol of one link, without I/O: greeting, flow control both ways, heartbeats.

Both sides say `Hello` first, with the window that they grant: how many bytes of session messages the other may
have sent that were not yet consumed. `Credit` gives consumed bytes back. Whoever breaks the rules has made a
PeerMisbehaved of itself.
"""

from collections import deque

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.net.bandwidth import Bandwidth
from p2pgrid.settings import LinkSettings
from p2pgrid.wire.messages import Credit, Goodbye, Hello, LinkControl, LinkMessage, Ping, Pong, SessionMessage

COST_BYTES_MIN = 1024
"""The least that a message counts against the window, so that small ones are bounded too."""

PINGS_EVERY = 5
"""A link that is always busy still measures its round trip, once in so many heartbeats."""

RTT_SAMPLES = 8
"""The least of so many round trips is taken for that of a quiet link."""


def cost_of(frame_bytes: int) -> int:
    """What a frame of `frame_bytes`, its length header included, counts against the window."""
    return max(COST_BYTES_MIN, frame_bytes)


class LinkState:
    """Both directions of one link. `now` is seconds on any clock that only goes forward."""

    def __init__(self, settings: LinkSettings, agent: str, now: float) -> None:
        self._settings = settings
        self.greeted = False
        self.rtt_s: float | None = None
        self.bandwidth = Bandwidth()
        self._rtts_s: deque[float] = deque(maxlen=RTT_SAMPLES)
        # What we may send.
        self._peer_window = 0
        self._credit = 0
        # What we let the other send.
        self._unreturned = 0
        self._consumed = 0
        # What the writer should say of its own accord; each at most once, so that nothing can pile up.
        self._hello: Hello | None = Hello(agent[:500], settings.window_bytes)
        self._pong: int | None = None
        self._ping_due = False
        self._credit_due = 0
        self._goodbye: Goodbye | None = None
        # Heartbeats.
        self.pinged = 0
        """Nonce of our latest ping."""
        self.answered = 0
        """Nonce of the latest ping that was answered."""
        self._ping_sent_at: float | None = None
        self._pinged_at = now - PINGS_EVERY * settings.heartbeat_s
        self._sent_at = now
        self._heard_at = now
        self._ticked_at = now

    # ── incoming ─────────────────────────────────────────────────────────────────────────────────────────

    def heard(self, now: float) -> None:
        """Some bytes came, whatever they are."""
        self._heard_at = now

    def received(self, message: LinkMessage, frame_bytes: int, now: float) -> SessionMessage | Goodbye | None:
        """Take one message; a session message is the caller's to deliver, a Goodbye its to act upon.

        Raises PeerMisbehaved.
        """
        match message:
            case Hello():
                if self.greeted:
                    raise PeerMisbehaved("a second Hello")
                self.greeted = True
                self._peer_window = self._credit = message.window_bytes
                return None
            case Goodbye():
                return message
            case _ if not self.greeted:
                raise PeerMisbehaved(f"{type(message).__name__} before Hello")
            case Ping():
                self._pong = message.nonce
                return None
            case Pong():
                self._measure(message.nonce, now)
                return None
            case Credit():
                self._credit += message.nbytes
                if self._credit > self._peer_window:
                    raise PeerMisbehaved("more credit than was used")
                return None
            case _:
                self._unreturned += cost_of(frame_bytes)
                if self._unreturned > self._settings.window_bytes:
                    raise PeerMisbehaved("more bytes in flight than the window allows")
                return message

    def consumed(self, cost: int) -> bool:
        """A message of `cost` was consumed. True when the writer has credit to send for it now."""
        self._consumed += cost
        if self._consumed < self._settings.window_bytes // 4:
            return False
        self._return_credit()
        return True

    def _return_credit(self) -> None:
        self._unreturned -= self._consumed
        self._credit_due += self._consumed
        self._consumed = 0

    def _measure(self, nonce: int, now: float) -> None:
        timed = self.bandwidth.ponged(nonce, now, min(self._rtts_s, default=None))
        if nonce != self.pinged or self._ping_sent_at is None:
            return
        self.answered = nonce
        sample = now - self._ping_sent_at
        self._ping_sent_at = None
        if timed:
            return  # it waited behind a burst
        self._rtts_s.append(sample)
        self.rtt_s = sample if self.rtt_s is None else 0.875 * self.rtt_s + 0.125 * sample

    # ── outgoing ─────────────────────────────────────────────────────────────────────────────────────────

    def fits_at_all(self, cost: int) -> bool:
        """Whether the other side's window is large enough for such a message, once it is empty."""
        return cost <= self._peer_window

    def may_send(self, cost: int) -> bool:
        return cost <= self._credit

    def spend(self, cost: int) -> None:
        """A message of `cost` was queued; only after `may_send`."""
        self._credit -= cost

    def ask_for_ping(self) -> None:
        self._ping_due = True

    def say_goodbye(self, reason: str) -> None:
        self._goodbye = Goodbye(reason[:500])

    def take_control(self, now: float) -> list[LinkControl]:
        """The control messages to write now, ahead of all session messages."""
        messages: list[LinkControl] = []
        if self._hello is not None:
            messages.append(self._hello)
            self._hello = None
        if self._pong is not None:
            messages.append(Pong(self._pong))
            self._pong = None
        if self._credit_due:
            messages.append(Credit(self._credit_due))
            self._credit_due = 0
        if self.bandwidth.wants_ping:
            # One that times a burst stands for no other: it knows nothing of the round trip.
            messages.append(self._ping(now))
            self.bandwidth.pinged(self.pinged)
        elif self._ping_due:
            self._ping_due = False
            self._pinged_at = now
            messages.append(self._ping(now))
        return messages

    def _ping(self, now: float) -> Ping:
        self.pinged += 1
        self._ping_sent_at = now
        return Ping(self.pinged)

    def take_goodbye(self) -> Goodbye | None:
        """The last message, once nothing else waits to be written."""
        goodbye, self._goodbye = self._goodbye, None
        return goodbye

    def sent(self, nbytes: int, began: float, now: float, *, idle_before: bool = True) -> None:
        """So many bytes were handed to the stream since `began`; `idle_before` when nothing had waited for that."""
        self._sent_at = now
        self.bandwidth.wrote(nbytes, began, idle_before=idle_before)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────

    def next_tick(self, now: float) -> float:
        """When `tick` should be called next; always later than `now`."""
        settings = self._settings
        quiet_at = max(self._sent_at, self._pinged_at) + settings.heartbeat_s
        lost_at = self._heard_at + settings.silence_s_max
        return max(min(quiet_at, lost_at), now + settings.heartbeat_s / 8)

    def tick(self, now: float) -> bool:
        """Let time pass: decide about a ping, and return whether the link still lives."""
        settings = self._settings
        if now - self._ticked_at > 2 * settings.heartbeat_s:
            # It was us who slept (a suspended laptop, a blocked process): what the other side sent meanwhile
            # may still wait to be read, so there is one more heartbeat to read it.
            self._heard_at = max(self._heard_at, now - settings.silence_s_max + settings.heartbeat_s)
        self._ticked_at = now
        if now - self._heard_at >= settings.silence_s_max:
            return False
        quiet = now - max(self._sent_at, self._pinged_at) >= settings.heartbeat_s
        if quiet or now - self._pinged_at >= PINGS_EVERY * settings.heartbeat_s:
            self._ping_due = True
        if self._consumed:
            # Small windows: without this a message that needs almost all of it could wait for ever.
            self._return_credit()
        return True
