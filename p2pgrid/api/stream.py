"""One answer as it comes: read piece by piece, or at once, and closed on the swarm however its reader ends."""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

from p2pgrid.errors import BadInput, P2pgridError
from p2pgrid.node.answer import Answer, Piece, Show, TokenInfo

Work = Callable[[Show], Awaitable[Answer]]
"""Gives an answer, and shows each piece of it on the way. Raises P2pgridError."""


class _Run:
    """What the reader and the task that gets the answer share. The task holds no reader, so a reader can be dropped."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.answer: Answer | None = None
        self.failure: P2pgridError | None = None
        self.tokens: list[TokenInfo] = []
        # An answer is bounded by its request, so what nobody has read yet is too.
        self._write, self.read = trio.open_memory_channel[str](math.inf)

    async def run(self) -> None:
        try:
            with self._write, self.scope:
                self.answer = await self._work(self._show)
        except P2pgridError as error:
            self.failure = error
        finally:
            self.ended.set()

    def _show(self, piece: Piece) -> None:
        if piece.token is not None:
            self.tokens.append(piece.token)
        if piece.text:
            self._write.send_nowait(piece.text)


class AnswerStream:
    """An asynchronous iterator over the pieces of text of one answer, from `Grid.generate` or `Grid.chat`.

    Nothing is asked before the first piece is waited for. Used as `async with`, the answer is closed on every stage
    when the block is left; a stream that is dropped otherwise, as by `break` in an `async for`, is closed soon after.
    """

    def __init__(self, tasks: trio.Nursery, work: Work) -> None:
        self._tasks = tasks
        self._run = _Run(work)
        self._token = trio.lowlevel.current_trio_token()
        self._started = False
        self._closed = False

    @property
    def answer(self) -> Answer:
        """The finished answer: text, token ids, finish reason, counts of tokens, times, route and recoveries.

        Raises BadInput while it is not finished, or when it never will be.
        """
        if self._run.answer is None:
            raise BadInput("the answer is not finished: read it to its end first")
        return self._run.answer

    @property
    def tokens(self) -> list[TokenInfo]:
        """Those that came until now, each with its bytes, and with log-probabilities if `logprobs` asked for them."""
        return list(self._run.tokens)

    async def read(self) -> Answer:
        """Read what is left, and return the whole answer. Raises as `__anext__`."""
        async for _ in self:
            pass
        return self.answer

    async def aclose(self) -> None:
        """End the answer if it is not finished. When this returns, every stage was told."""
        self._closed = True
        self._run.scope.cancel()
        if self._started:
            await self._run.ended.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Raises BadInput, NoRoute, Overloaded, PeerUnavailable, PeerMisbehaved, LocalFault."""
        if self._closed:
            raise StopAsyncIteration
        if not self._started:
            self._started = True
            self._tasks.start_soon(self._run.run)
        try:
            return await self._run.read.receive()
        except trio.EndOfChannel:
            await self._run.ended.wait()
        if self._run.failure is not None:
            raise self._run.failure
        if self._run.answer is None and not self._closed:
            raise BadInput("the answer was ended with its connection: read it inside the connection's block")
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._started or self._run.ended.is_set():
            return
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._run.scope.cancel)  # from whatever thread drops the last reference
