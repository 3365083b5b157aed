"""From tokens to text as it streams: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Feeds on the bytes of each token and gives out text that is safe to show. Does no I/O.

    Bytes of an unfinished UTF-8 character are held back, and so is text that may turn out to be the
    beginning of a stop string. After `stopped` nothing more comes.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [s for s in stop if s]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """The text that `data` makes certain."""
        return self._show(data, last=False)

    def finish(self) -> str:
        """What was held back, once no more bytes will come."""
        return self._show(b"", last=True)

    def _show(self, data: bytes, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, final=last)
        # The stop string that is complete first, as if the bytes had come one by one.
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found)[1])
        return self._take(len(self._held) - (0 if last else self._maybe_stop()))

    def _take(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        return text

    def _maybe_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-n:]) for s in self._stop):
                return n
        return 0
