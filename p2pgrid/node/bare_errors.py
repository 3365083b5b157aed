"""Of the errors that tasks raise together, the one to read: callers need know nothing of exception groups."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from p2pgrid.errors import P2pgridError


@contextmanager
def bare_errors() -> Iterator[None]:
    """Raises one error instead of a group: a bug before an interrupt, an interrupt before what we raise on purpose."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _the_one(group) from group


def _the_one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = list(_leaves(group))
    bugs = [e for e in leaves if not isinstance(e, P2pgridError | KeyboardInterrupt | trio.Cancelled)]
    interrupts = [e for e in leaves if isinstance(e, KeyboardInterrupt)]
    ours = [e for e in leaves if isinstance(e, P2pgridError)]
    return [*bugs, *interrupts, *ours, *leaves][0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
