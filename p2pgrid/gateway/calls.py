"""The calls of an answer, as OpenAI's clients hear of them."""

from p2pgrid.gateway.documents import FunctionCall, StreamedCall
from p2pgrid.gateway.tool_calls import CallReader, ToolCall
from p2pgrid.node.answer import Answer


class CallsOfChoice:
    """Tells the text of choice `index` from its calls; without a reader all of it is text."""

    def __init__(self, asked_id: str, index: int, reader: CallReader | None) -> None:
        self._ids = f"call_{asked_id.removeprefix('chatcmpl-')}_{index}"
        self._reader = reader
        self._made = 0

    def take(self, text: str, *, last: bool) -> tuple[str, list[StreamedCall]]:
        """Text and calls that became certain with `text`, behind which with `last` nothing comes."""
        if self._reader is None:
            return text, []
        parts = self._reader.push(text) + (self._reader.finish() if last else [])
        said = "".join(part for part in parts if isinstance(part, str))
        return said, [self._numbered(part) for part in parts if isinstance(part, ToolCall)]

    def finish_reason(self, answer: Answer) -> str:
        return "tool_calls" if self._made else answer.finish_reason

    def _numbered(self, call: ToolCall) -> StreamedCall:
        number, self._made = self._made, self._made + 1
        return StreamedCall(number, f"{self._ids}_{number}", FunctionCall(call.name, call.arguments))
