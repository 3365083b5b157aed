"""How much of the machine others use while we measure."""

from collections.abc import Callable

import psutil

Watch = Callable[[], Callable[[], float]]
"""Begin to watch; call the result for the share of the machine, 0 to 1, that other processes took since."""

TELLING_S = 0.2
"""CPU seconds, of all cores together, below which the kernel's figures say nothing."""


def watch_foreign_load() -> Callable[[], float]:
    """See `Watch`. Ours is this process and all that it started, those that have ended included.

    Time that the hypervisor gave to other machines counts as foreign; time in interrupts does not, because
    nobody knows for whom it was spent. The kernel counts in hundredths of a second: over much less than half a
    second the share is coarse, and over a tenth of one nobody can tell: that is taken for none.
    """
    busy_before, total_before = _machine_s()
    ours_before = _ours_s()

    def share() -> float:
        busy, total = _machine_s()
        if total - total_before < TELLING_S:
            return 0.0
        foreign_s = (busy - busy_before) - (_ours_s() - ours_before)
        return min(max(foreign_s / (total - total_before), 0.0), 1.0)

    return share


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that these processes have used so far; none for one that is gone."""
    return sum(_process_s(psutil.Process(pid)) for pid in pids if psutil.pid_exists(pid))


def _machine_s() -> tuple[float, float]:
    """CPU seconds spent by processes or lost to others, and all that there were, over all cores."""
    times = psutil.cpu_times()
    busy = times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0)
    idle = times.idle + sum(getattr(times, name, 0.0) for name in ("iowait", "irq", "softirq"))
    return busy, busy + idle


def _ours_s() -> float:
    """Of this process, its descendants, and those of them that ended: a parent inherits what its children used."""
    me = psutil.Process()
    return sum(_process_s(process, ended=True) for process in (me, *me.children(recursive=True)))


def _process_s(process: psutil.Process, *, ended: bool = False) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it ended just now; its parent has its time
        return 0.0
    used = times.user + times.system
    if ended:
        used += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(used)
