"""One bootstrap peer and N nodes as processes on loopback, which know only the bootstrap's address."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from p2pgrid.folders import temporary_folder
from p2pgrid.node.state_file import ProcessState
from p2pgrid.swarm.processes import Member, end_members, start_member, wait_for_phase

LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0")


def listen_anywhere(number: int) -> Sequence[str]:
    """The arguments of node `number`, from 0, unless somebody decides otherwise: any free port."""
    return LISTEN


class LocalSwarm:
    """A running swarm; made by `open_local_swarm`, which ends it."""

    def __init__(self, bootstrap: ProcessState, members: list[Member]) -> None:
        self.bootstrap = bootstrap
        self._members = members

    @property
    def bootstrap_addresses(self) -> list[str]:
        return list(self.bootstrap.addresses)

    def nodes(self) -> list[ProcessState]:
        """The nodes that live and have said who they are, in the order of their start."""
        states = [member.state() for member in self._members if member.alive]
        return [state for state in states if state is not None]

    async def wait_serving(self) -> None:
        """Until every node serves. Raises LocalFault, naming the node, when one ends before that."""
        async with trio.open_nursery() as tasks:
            for member in self._members:
                tasks.start_soon(wait_for_phase, member, "serving")

    async def wait_changed(self, before: list[ProcessState]) -> list[ProcessState]:
        """The nodes' states once they differ from `before`."""
        while (now := self.nodes()) == before:  # noqa: ASYNC110 - other processes tell us by files
            await trio.sleep(0.2)
        return now


@asynccontextmanager
async def open_local_swarm(
    model: str, nodes: int, span_max: int, arguments_of: Callable[[int], Sequence[str]] = listen_anywhere
) -> AsyncIterator[LocalSwarm]:
    """Start the swarm; end every process of it on every exit.

    Each node takes at most `span_max` layers and chooses them itself. `arguments_of(number)`, numbers from 0, are
    what the `p2pgrid node` of that number is given besides; they say where it listens. Raises LocalFault when a
    process cannot start.
    """
    members: list[Member] = []
    with temporary_folder() as directory:
        try:
            members.append(await start_member("bootstrap", ["bootstrap", *LISTEN, "--ephemeral"], directory))
            bootstrap = await wait_for_phase(members[0], "serving")
            for i in range(nodes):
                joining = [arg for address in bootstrap.addresses for arg in ("--bootstrap", address)]
                command = ["node", "--model", model, *joining, "--ephemeral", "--span-max", str(span_max)]
                command += ["--turns", str(directory)]
                command += arguments_of(i)
                members.append(await start_member(f"node-{i + 1}", command, directory))
            yield LocalSwarm(bootstrap, members[1:])
        finally:
            await end_members(members)
