"""Running a command's async part: one error out of many, signals, and standard input as a leash."""

import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from p2pgrid.errors import P2pgridError

T = TypeVar("T")


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, and of the errors that tasks raise together the one that the user should read."""
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise _the_one(group) from group


def _the_one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of ours; an interrupt before it; anything else, being a bug, before both."""
    leaves = list(_leaves(group))
    bugs = [e for e in leaves if not isinstance(e, P2pgridError | KeyboardInterrupt | trio.Cancelled)]
    interrupts = [e for e in leaves if isinstance(e, KeyboardInterrupt)]
    ours = [e for e in leaves if isinstance(e, P2pgridError)]
    return [*bugs, *interrupts, *ours, *leaves][0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


async def until_told_to_stop(*, until_stdin_closes: bool) -> None:
    """Return at the first SIGINT or SIGTERM, or, if asked for, when standard input ends.

    The latter ties a process to the one that started it: however that one ends, its end of the pipe closes.
    """
    async with trio.open_nursery() as tasks:

        async def watch_signals() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        async def watch_stdin() -> None:
            stdin = trio.lowlevel.FdStream(sys.stdin.fileno())
            while await stdin.receive_some():
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch_signals)
        if until_stdin_closes:
            tasks.start_soon(watch_stdin)
