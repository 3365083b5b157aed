"""Two workers share a machine of any speed; tests with limits in seconds have it for themselves."""

import fcntl
import signal
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

ROOM = Path(__file__)
DOOR = ROOM.with_name("__init__.py")
REAL_PROCESSES = "tests/e2e/"
SHARED = ("battered", "swarm")
"""Swarms of tests/e2e/conftest.py, which cost computing as long as they live."""

# Whoever starts tests in the background may have told them to ignore it, and that is handed down to every process.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example is judged by what comes out, not by how long a busy machine took for it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


class Together(LoadFileScheduling):
    """The tests of a file stay with one worker for what they set up; those of real processes, for their swarms."""

    def _split_scope(self, nodeid: str) -> str:
        return REAL_PROCESSES if nodeid.startswith(REAL_PROCESSES) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # without xdist there is nothing to schedule
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with it when the other has nothing more to do."""
    of_file = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[bool, list[bool], int]:
        needs = getattr(item, "fixturenames", ())
        is_quick = not item.nodeid.startswith(REAL_PROCESSES)
        return is_quick, [name in needs for name in SHARED], -of_file[item.path]

    items.sort(key=place)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the time to wait is none of the test's
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` runs while no other worker of this checkout tests anything."""
    alone = item.get_closest_marker("alone") is not None
    with ROOM.open() as room:
        with DOOR.open() as door:
            fcntl.flock(door, fcntl.LOCK_EX)  # whoever waits until the room is empty lets nobody else in
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)
