"""Child processes on a leash: each ends with its supervisor, on every exit path."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pgrid.errors import LocalFault
from p2pgrid.node.state_file import ProcessState, read_state

TERMINATE_S_MAX = 3.0
POLL_S = 0.05


@dataclass
class Member:
    """One child process with its log and its state file."""

    name: str
    process: trio.Process
    log: Path
    state_file: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def state(self) -> ProcessState | None:
        """What it last wrote of itself; None while it has not."""
        return read_state(self.state_file)

    def why_it_ended(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        return f"{self.name} ended with status {self.process.poll()}: {last}"


async def start_member(name: str, command: Sequence[str], directory: Path) -> Member:
    """Start `p2pgrid COMMAND…` with its state file and log in `directory`.

    Its standard input is a pipe that we hold, so that it stops when we are gone, even by `kill -9`; it has a
    session of its own, so that a Ctrl-C in the terminal reaches us alone and we end it in order.
    """
    log, state_file = directory / f"{name}.log", directory / f"{name}.json"
    with log.open("wb") as sink:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "p2pgrid", *command, "--state", str(state_file), "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    return Member(name, process, log, state_file)


async def wait_for_phase(member: Member, phase: str) -> ProcessState:
    """Its state once it reached `phase`. Raises LocalFault when it ends before that."""
    while True:
        state = member.state()
        if state is not None and state.phase == phase:
            return state
        if not member.alive:
            raise LocalFault(member.why_it_ended())
        await trio.sleep(POLL_S)


async def end_members(members: Sequence[Member]) -> None:
    """End all of them: politely first, by force after a few seconds. Returns when all are gone."""

    async def end(member: Member) -> None:
        with trio.move_on_after(TERMINATE_S_MAX):
            if member.alive:
                member.process.terminate()
            await member.process.wait()
        if member.alive:
            member.process.kill()
            await member.process.wait()
        if member.process.stdin is not None:
            await member.process.stdin.aclose()

    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as tasks:
            for member in members:
                tasks.start_soon(end, member)
