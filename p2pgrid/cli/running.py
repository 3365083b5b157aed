"""Running a command's async part: one error out of many, signals, and standard input as a leash."""

import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from p2pgrid.node.bare_errors import bare_errors

T = TypeVar("T")


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, and of the errors that tasks raise together the one that the user should read."""
    with bare_errors():
        return trio.run(main)


async def until_told_to_stop(
    *, until_stdin_closes: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Return at the first SIGINT or SIGTERM, or, if asked for, when standard input ends. Started once it hears them:
    before that an interrupt is one.

    The latter ties a process to the one that started it: however that one ends, its end of the pipe closes.
    """
    async with trio.open_nursery() as tasks:

        async def watch_signals() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
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
