"""Where a benchmark ran: machine, versions, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import p2pgrid
from p2pgrid.bench.document import Environment

PACKAGES = ("p2pgrid", "libp2p", "trio", "onnxruntime", "numpy", "llama-cpp-python")
GIT_S_MAX = 10.0


def describe_environment(model: str, command: str) -> Environment:
    """This machine and this installation, now. `command` is what the user typed."""
    return Environment(
        cpu=_cpu(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
        commit=_commit(Path(p2pgrid.__file__).parent),
        command=command,
        started_at=now(),
        model=model,
        foreign_cpu_share_max=0.0,
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit(checkout: Path) -> str:
    commit = _git(checkout, "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-dirty" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else commit


def _git(checkout: Path, *command: str) -> str:
    """What git says; nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *command], capture_output=True, text=True, timeout=GIT_S_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
