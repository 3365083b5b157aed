"""What waits to be written to one link, and how much of it goes in one write."""

from collections import deque

from p2pgrid.net.link_state import LinkState
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import SessionMessage

WRITE_BYTES_MAX = 65_500
"""Frames are joined up to this size: what fits one message of the encryption underneath."""


class Outgoing:
    """Frames of session messages, first in, first out."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._frames: deque[tuple[bytes, SessionMessage]] = deque()

    def append(self, data: bytes, message: SessionMessage) -> None:
        self._frames.append((data, message))
        self.nbytes += len(data)

    def next_write(self, state: LinkState, now: float) -> tuple[bytes, list[SessionMessage]]:
        """What the link's own protocol has to say, and the frames that fit beside it, with their messages."""
        parts = [frame(message) for message in state.take_control(now)]
        size = sum(map(len, parts))
        messages: list[SessionMessage] = []
        while self._frames and (not size or size + len(self._frames[0][0]) <= WRITE_BYTES_MAX):
            data, message = self._frames.popleft()
            self.nbytes -= len(data)
            size += len(data)
            messages.append(message)
            parts.append(data)
        if not parts and (goodbye := state.take_goodbye()) is not None:
            parts.append(frame(goodbye))
        return parts[0] if len(parts) == 1 else b"".join(parts), messages
