"""Watches what other programs take of this machine, and tells when its owner comes back or goes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import structlog
import trio

from p2pgrid.core.owner_policy import OwnerPolicy, OwnerTerms

log = structlog.get_logger()

LOOK_S = 1.0
SURE_AFTER_LOOKS = 3
"""A process begins as a copy of its parent, and then loads its own program: after so many looks it is what it is."""


class OwnerWatch:
    """`read_load()` gives the share of the machine, 0 to 1, that other programs took since it was last called."""

    def __init__(self, terms: OwnerTerms, read_load: Callable[[], float]) -> None:
        self._read_load = read_load
        self._policy = OwnerPolicy(terms)
        self._changed = trio.Event()

    @property
    def owner_is_back(self) -> bool:
        return self._policy.owner_is_back

    async def run(self) -> None:
        while True:
            load, before = self._read_load(), self.owner_is_back
            if self._policy.observe(load, trio.current_time()) != before:
                log.info("other programs need the machine" if not before else "other programs are quiet", load=load)
                self._changed.set()
                self._changed = trio.Event()
            await trio.sleep(LOOK_S)

    async def wait_until_back(self) -> None:
        while not self.owner_is_back:
            await self._changed.wait()

    async def wait_until_gone(self) -> None:
        while self.owner_is_back:
            await self._changed.wait()


class OtherPrograms:
    """What all processes but p2pgrid's own, those of this user, take of the machine."""

    def __init__(self) -> None:
        self._busy_s, self._total_s = _machine_s()
        self._ours_s: dict[int, float] = {}
        self._known: dict[int, tuple[bool, int]] = {}
        """Whether a process is p2pgrid's, and how often it was looked at."""

    def share(self) -> float:
        """Of all cores, 0 to 1, since the last call. Interrupts do not count, nor what a hypervisor took away."""
        busy_s, total_s = _machine_s()
        before_s = {pid: self._ours_s.get(pid) for pid in self._known}
        ours_s = self._read_ours()
        took_ours_s = 0.0
        for pid, used_s in ours_s.items():
            had_used_s = before_s.get(pid, 0.0)  # None: it was there, and not known as ours
            took_ours_s += 0.0 if had_used_s is None else used_s - had_used_s
        took_s, passed_s = busy_s - self._busy_s - took_ours_s, total_s - self._total_s
        self._busy_s, self._total_s, self._ours_s = busy_s, total_s, ours_s
        return min(max(took_s / passed_s, 0.0), 1.0) if passed_s > 0 else 0.0

    def _read_ours(self) -> dict[int, float]:
        """CPU seconds that each of our processes has used so far."""
        found: dict[int, float] = {}
        known: dict[int, tuple[bool, int]] = {}
        for process in psutil.process_iter():
            ours, looks = self._known.get(process.pid, (False, 0))
            try:
                if looks < SURE_AFTER_LOOKS:
                    ours = is_p2pgrid(process.cmdline()) and process.uids().real == os.getuid()
                known[process.pid] = ours, looks + 1
                if ours or process.pid == os.getpid():
                    times = process.cpu_times()
                    found[process.pid] = times.user + times.system
            except psutil.Error:  # it ended just now, or is none of our business
                continue
        self._known = known
        return found


def is_p2pgrid(command: Sequence[str]) -> bool:
    """Whether a process with that command line is `p2pgrid …`, or a Python that runs it or one of its modules."""
    if not command or Path(command[0]).name == "p2pgrid":
        return bool(command)
    runs = next((word for word in command[1:] if not word.startswith("-")), "")
    return Path(command[0]).name.startswith("python") and Path(runs).name.split(".")[0] == "p2pgrid"


def _machine_s() -> tuple[float, float]:
    """CPU seconds spent by processes, and all that there were, over all cores."""
    times = psutil.cpu_times()
    busy = times.user + times.system + getattr(times, "nice", 0.0)
    idle = times.idle + sum(getattr(times, name, 0.0) for name in ("iowait", "irq", "softirq", "steal"))
    return busy, busy + idle
