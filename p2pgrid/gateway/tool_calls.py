"""Calls of functions in the text of an answer, in the style of Hermes and Qwen. Does no I/O.

`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them, with text around.
"""

from dataclasses import dataclass

import msgspec

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """What the model wants called."""

    name: str
    arguments: str
    """A JSON object, as the model wrote it."""


class _Said(msgspec.Struct):
    name: str
    arguments: msgspec.Raw


class CallReader:
    """Takes the text of one answer in pieces of any length, and gives back text and calls in their order.

    White space next to a call is left out; what stands between the tags and is no call comes back as the text that it
    was. A call is given back when it is complete.
    """

    def __init__(self, *, called: bool = False) -> None:
        """With `called` the answer is one call, without tags: none is looked for, as they may be in its arguments."""
        self._called = called
        self._held = ""
        """Not yet read: maybe the beginning of a tag, or of a call."""
        self._inside = False
        self._space = ""
        """White space behind some text, until it is known what follows."""
        self._behind_call = False

    def push(self, text: str) -> list[str | ToolCall]:
        """What `text` makes certain."""
        self._held += text
        return [] if self._called else self._read(last=False)

    def finish(self) -> list[str | ToolCall]:
        """What was kept back, once no more text will come. The last call needs no closing tag."""
        if self._called:
            return [_call_of(self._held) or self._held]
        found = self._read(last=True)
        return [*found, self._space] if self._space else found

    def _read(self, *, last: bool) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        while True:
            before, tag, rest = self._held.partition(CLOSE if self._inside else OPEN)
            if not self._inside:
                kept = 0 if tag or last else _maybe_tag(before)
                found += self._said(before[: len(before) - kept])
                self._held = rest if tag else before[len(before) - kept :]
                if not tag:
                    return found
                self._inside = True
            elif not tag and not last:
                return found
            else:
                found += self._between_tags(before, tag)
                self._held, self._inside = rest, False

    def _said(self, text: str) -> list[str | ToolCall]:
        text = self._space + text
        if self._behind_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._behind_call = self._behind_call and not shown
        return [shown] if shown else []

    def _between_tags(self, between: str, closed: str) -> list[str | ToolCall]:
        if (call := _call_of(between)) is None:
            return self._said(OPEN + between + closed)
        self._space, self._behind_call = "", True
        return [call]


def _call_of(text: str) -> ToolCall | None:
    try:
        said = msgspec.json.decode(text, type=_Said)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    arguments = bytes(said.arguments).decode()
    return ToolCall(said.name, arguments) if said.name and arguments.startswith("{") else None


def _maybe_tag(text: str) -> int:
    """Length of the longest end of `text` that begins an opening tag."""
    return next((n for n in range(min(len(OPEN) - 1, len(text)), 0, -1) if OPEN.startswith(text[-n:])), 0)
