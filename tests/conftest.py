"""`make test` has two workers that share a machine of any speed; tests of real processes have it for themselves."""

import fcntl
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOM = Path(__file__)
DOOR = ROOM.with_name("__init__.py")

# Whoever starts tests in the background may have told them to ignore it, and that is handed down to every process.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example is judged by what comes out, not by how long a busy machine took for it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the time to wait is none of the test's
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `e2e` runs while no other worker of this checkout tests anything."""
    alone = item.get_closest_marker("e2e") is not None
    with ROOM.open() as room:
        with DOOR.open() as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # whoever waits until the room is empty lets nobody else in
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
