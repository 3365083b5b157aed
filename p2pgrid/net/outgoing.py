"""What waits to be written to one link, and how much of it goes in one write."""

from collections import deque

from p2pgrid.net.link_state import LinkState
from p2pgrid.wire.codec import frame
from p2pgrid.wire.messages import SessionMessage

WRITE_BYTES_MAX = 65_500
"""Frames are joined up to this size: what fits one message of the encryption underneath."""

_Entry = tuple[bytes, list[SessionMessage]]


class Outgoing:
    """Frames of session messages, first in, first out."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._entries: deque[_Entry] = deque()

    def append(self, data: bytes, message: SessionMessage) -> None:
        self._entries.append((data, [message]))
        self.nbytes += len(data)

    def take_all(self) -> _Entry:
        """Everything, joined."""
        data = b"".join(data for data, _ in self._entries)
        messages = [message for _, messages in self._entries for message in messages]
        self._entries.clear()
        self.nbytes = 0
        return data, messages

    def put_back(self, data: bytes, messages: list[SessionMessage]) -> None:
        """To the front, what was taken and could not be written."""
        self._entries.appendleft((data, messages))
        self.nbytes += len(data)

    def next_write(self, state: LinkState, now: float) -> _Entry:
        """What the link's own protocol has to say, and the frames that fit beside it, with their messages."""
        parts = [frame(message) for message in state.take_control(now)]
        size = sum(map(len, parts))
        written: list[SessionMessage] = []
        while self._entries and (not size or size + len(self._entries[0][0]) <= WRITE_BYTES_MAX):
            data, messages = self._entries.popleft()
            self.nbytes -= len(data)
            size += len(data)
            written += messages
            parts.append(data)
        if not parts and (goodbye := state.take_goodbye()) is not None:
            parts.append(frame(goodbye))
        return parts[0] if len(parts) == 1 else b"".join(parts), written
