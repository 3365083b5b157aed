"""The same without trio: a thread runs the swarm's side, calls wait for it, and Ctrl-C ends what they wait for."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import trio

from p2pgrid.api.grid import Grid, Options, connect
from p2pgrid.api.models import Advance
from p2pgrid.api.stream import AnswerStream
from p2pgrid.errors import BadInput
from p2pgrid.node.answer import Answer, ScoredText, TokenInfo
from p2pgrid.node.survey import ModelSurvey
from p2pgrid.storage.catalogue import DEFAULT_MODEL

T = TypeVar("T")


class _Thread:
    """The thread's run loop, as seen from other threads."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token

    def wait_for(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which is cancelled when we are interrupted. Raises what it raises."""
        scope = trio.CancelScope()

        async def cancellable() -> T:
            with scope:
                return await work()
            raise BadInput("the call was ended")

        try:
            return trio.from_thread.run(cancellable, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise BadInput("the connection is closed: use it inside its `with` block") from None
        finally:
            self.soon(scope.cancel)  # for one that was interrupted; to others it does nothing

    def run(self, work: Callable[[], T]) -> T:
        """Call `work` there. It must not wait."""

        async def called() -> T:
            return work()

        return self.wait_for(called)

    def soon(self, work: Callable[[], None]) -> None:
        """Call `work` there, if anything runs there any more."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(work)


class BlockingStream:
    """The twin of `AnswerStream`: an iterator over the pieces of text of one answer."""

    def __init__(self, thread: _Thread, stream: AnswerStream) -> None:
        self._thread = thread
        self._stream = stream

    @property
    def answer(self) -> Answer:
        """See `AnswerStream.answer`."""
        return self._stream.answer

    @property
    def tokens(self) -> list[TokenInfo]:
        """See `AnswerStream.tokens`."""
        return self._stream.tokens

    def read(self) -> Answer:
        """Read what is left, and return the whole answer."""
        return self._thread.wait_for(self._stream.read)

    def close(self) -> None:
        """End the answer if it is not finished. When this returns, every stage was told."""
        self._thread.wait_for(self._stream.aclose)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        piece = self._thread.wait_for(partial(_next_piece, self._stream))
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next_piece(stream: AnswerStream) -> str | None:
    return await anext(stream, None)


class BlockingGrid:
    """The twin of `Grid`, for one thread or several. Made by `connect_blocking`."""

    def __init__(self, thread: _Thread, grid: Grid) -> None:
        self._thread = thread
        self._grid = grid

    def models(self) -> list[ModelSurvey]:
        """See `Grid.models`."""
        return self._thread.wait_for(self._grid.models)

    def generate(self, prompt: str, *, raw: bool = False, **options: Unpack[Options]) -> BlockingStream:
        """See `Grid.generate`."""
        return self._stream(lambda: self._grid.generate(prompt, raw=raw, **options))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Unpack[Options]) -> BlockingStream:
        """See `Grid.chat`."""
        return self._stream(lambda: self._grid.chat(messages, **options))

    def score(self, text: str, *, model: str | None = None, top: int = 0) -> ScoredText:
        """See `Grid.score`."""
        return self._thread.wait_for(partial(self._grid.score, text, model=model, top=top))

    def _stream(self, ask: Callable[[], AnswerStream]) -> BlockingStream:
        return BlockingStream(self._thread, self._thread.run(ask))


@contextmanager
def connect_blocking(
    bootstrap: str | Sequence[str] = (),
    *,
    model: str = DEFAULT_MODEL,
    local: bool = False,
    on_progress: Advance | None = None,
) -> Iterator[BlockingGrid]:
    """The twin of `connect`, for programs without trio: `with p2pgrid.connect_blocking(…) as grid`.

    A thread of its own talks to the swarm until the context ends; `on_progress` is called there.
    """
    token: Future[trio.lowlevel.TrioToken] = Future()
    opened: Future[Grid] = Future()
    life = trio.CancelScope()

    async def main() -> None:
        token.set_result(trio.lowlevel.current_trio_token())
        with life:
            async with connect(bootstrap, model=model, local=local, on_progress=on_progress) as grid:
                opened.set_result(grid)
                await trio.sleep_forever()

    with ThreadPoolExecutor(1, "p2pgrid") as threads:
        try:
            running = threads.submit(trio.run, main)
            either: list[Future[Any]] = [opened, running]
            wait(either, return_when=FIRST_COMPLETED)
            if not opened.done():
                running.result()  # raises why
            yield BlockingGrid(_Thread(token.result()), opened.result())
        finally:  # also when we are interrupted before the thread has begun
            token.add_done_callback(lambda known: _Thread(known.result()).soon(life.cancel))
    running.result()
