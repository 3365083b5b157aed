"""The processes of a scenario in which some are killed and others join; none outlives its scenario."""

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from p2pgrid.folders import temporary_folder
from p2pgrid.ids import Span
from p2pgrid.node.state_file import ProcessState
from p2pgrid.swarm.processes import Member, end_members, start_member, wait_for_phase

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0", "--ephemeral")


class Crew:
    """A bootstrap peer and whoever joined through it. Made by `open_crew`, which ends them all."""

    def __init__(self, directory: Path) -> None:
        self.members: list[Member] = []
        """All that were ever started, the bootstrap peer first."""
        self._directory = directory

    @property
    def bootstrap(self) -> list[str]:
        """Where others join."""
        state = self.members[0].state()
        return [] if state is None else list(state.addresses)

    @property
    def living(self) -> list[Member]:
        """Who is alive, the bootstrap peer left out."""
        return [member for member in self.members[1:] if member.alive]

    async def start_bootstrap(self) -> None:
        """Returns when it serves. Raises LocalFault when it ends before."""
        self.members.append(await start_member("bootstrap", ["bootstrap", *LISTEN], self._directory))
        await wait_for_phase(self.members[0], "serving")

    async def start_node(self, model: str, span: Span) -> Member:
        """A full node with these layers; does not wait for it."""
        return await self._start_node(model, "--layers", str(span))

    async def start_free_node(self, model: str, span_max: int) -> Member:
        """The same with the layers that it chooses, then and later."""
        return await self._start_node(model, "--span-max", str(span_max))

    async def _start_node(self, model: str, *layers: str) -> Member:
        # Nodes of one machine, as its owner would run them: two steps at once would wait for each other's cores.
        turns = ["--turns", str(self._directory)]
        command = ["node", "--model", model, *layers, *turns, *LISTEN, *self._joining()]
        member = await start_member(f"node-{len(self.members)}", command, self._directory)
        self.members.append(member)
        return member

    async def start_module(self, module: str, arguments: Sequence[str]) -> Member:
        """`python -m MODULE` with a state file and the bootstrap peer's addresses; does not wait for it.

        Its standard input is a pipe that we hold: it must end when that closes.
        """
        name = f"member-{len(self.members)}"
        log, state_file = self._directory / f"{name}.log", self._directory / f"{name}.json"
        with log.open("wb") as sink:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", module, *arguments, *self._joining(), "--state", str(state_file)],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        member = Member(name, process, log, state_file)
        self.members.append(member)
        return member

    async def kill(self, member: Member) -> None:
        """`kill -9`, and wait until it is gone."""
        if member.alive:
            member.process.kill()
        await member.process.wait()

    def left_behind(self) -> list[int]:
        """Processes that were started here and still run."""
        return [member.process.pid for member in self.members if runs(member.process.pid)]

    def last_note(self) -> str:
        """For the end of a scenario, after the crew was ended: whether all its processes are gone."""
        left = self.left_behind()
        fate = "none was left running" if not left else f"still running: {', '.join(map(str, left))}"
        return f"{len(self.members)} processes were started, {fate}"

    def _joining(self) -> list[str]:
        return [argument for address in self.bootstrap for argument in ("--bootstrap", address)]


@asynccontextmanager
async def open_crew() -> AsyncIterator[Crew]:
    """A bootstrap peer that others can join; all processes end with the context, on every exit.

    Raises LocalFault when it cannot start.
    """
    with temporary_folder() as directory:
        crew = Crew(directory)
        try:
            await crew.start_bootstrap()
            yield crew
        finally:
            await end_members(crew.members)


def runs(pid: int) -> bool:
    """Whether that process exists and is more than an entry that nobody has read yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def state_of(member: Member, phase: str) -> ProcessState | None:
    """What a living member says of itself while it is in that phase."""
    state = member.state() if member.alive else None
    return state if state is not None and state.phase == phase else None
