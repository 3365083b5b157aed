"""Telling a node of this machine to leave, through its socket."""

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio

from p2pgrid.errors import BadInput
from p2pgrid.ids import PeerId
from p2pgrid.node.control import DRAIN_S_MAX, ask_to_drain, nodes_here, obey
from tests.net.peers import identity


class Told:
    """A node that leaves as soon as it has no session."""

    def __init__(self) -> None:
        self.within_s: list[float] = []
        self.sessions = 2
        self.scope = trio.CancelScope()

    def drain(self, within_s: float) -> None:
        self.within_s.append(within_s)


@asynccontextmanager
async def obeying(folder: Path, number: int) -> AsyncIterator[tuple[PeerId, Told]]:
    peer, told = identity(number).peer, Told()
    async with trio.open_nursery() as tasks:
        await tasks.start(obey, folder, peer, told.drain, lambda: told.sessions)
        told.scope = tasks.cancel_scope
        yield peer, told
        tasks.cancel_scope.cancel()


def listening(path: Path) -> socket.socket:
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    taken.bind(str(path))
    taken.listen(1)
    return taken


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def leave_a_socket(path: Path) -> None:
    """As a process does that is killed."""
    listening(path).close()


async def ask_briefly(folder: Path, who: str, within_s: float) -> None:
    """Go away at the first answer."""
    with trio.CancelScope() as scope:
        await ask_to_drain(folder, who, within_s, lambda sessions: scope.cancel())


async def test_whoever_asks_hears_how_many_sessions_are_left_until_the_node_has_left(tmp_path: Path) -> None:
    async with obeying(tmp_path / "run", 1) as (peer, told):
        left = []

        def tell(sessions: int) -> None:
            left.append(sessions)
            told.sessions -= 1
            if sessions == 0:
                told.scope.cancel()

        await ask_to_drain(tmp_path / "run", peer, 12.0, tell)
        assert (left, told.within_s) == ([2, 1, 0], [12.0])
    assert nodes_here(tmp_path / "run") == []


async def test_the_only_node_needs_no_name_and_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    async with obeying(tmp_path, 1) as (peer, told):
        await ask_briefly(tmp_path, "", 1e9)
        assert told.within_s == [DRAIN_S_MAX]
        async with obeying(tmp_path, 2) as (other, _):
            assert nodes_here(tmp_path) == sorted([peer[-12:], other[-12:]])
            with pytest.raises(BadInput, match="several nodes"):
                await ask_briefly(tmp_path, "", 1.0)
            await ask_briefly(tmp_path, peer[-6:], 1.0)
            assert len(told.within_s) == 2


async def test_who_is_not_here_is_named_with_those_who_are(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="those that do: none"):
        await ask_briefly(tmp_path / "nothing", "", 1.0)
    async with obeying(tmp_path, 1) as (peer, _):
        here = f"no node 12D3Koo runs on this machine; those that do: …{peer[-12:]}. A node of another machine"
        with pytest.raises(BadInput, match=here):
            await ask_briefly(tmp_path, "12D3Koo", 1.0)


async def test_a_socket_that_a_killed_process_left_is_no_node_and_in_nobodys_way(tmp_path: Path) -> None:
    stale = tmp_path / f"{identity(1).peer[-12:]}.sock"
    leave_a_socket(stale)
    assert nodes_here(tmp_path) == []
    async with obeying(tmp_path, 1) as (peer, _):
        assert nodes_here(tmp_path) == [peer[-12:]]


async def test_whoever_comes_or_goes_removes_the_sockets_of_the_dead_and_no_others(tmp_path: Path) -> None:
    leave_a_socket(tmp_path / "before.sock")
    with closing(listening(tmp_path / "frozen.sock")) as frozen, ExitStack() as callers:
        for _ in range(9):  # more than may wait
            caller = callers.enter_context(closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            caller.setblocking(False)
            with suppress(BlockingIOError):
                caller.connect(frozen.getsockname())
        async with obeying(tmp_path, 1) as (peer, _):
            assert stems(tmp_path) == sorted([peer[-12:], "frozen"])
            leave_a_socket(tmp_path / "meanwhile.sock")
        assert stems(tmp_path) == ["frozen"]


async def test_a_file_of_that_name_that_cannot_be_removed_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "folder.sock").mkdir()
    async with obeying(tmp_path, 1) as (peer, _):
        assert nodes_here(tmp_path) == [peer[-12:]]


@pytest.mark.parametrize("line", [b"", b"drain\n", b"{}\n", b"x" * 10_000, b"\xff\n"])
async def test_whatever_is_said_to_the_socket_the_node_goes_on(line: bytes, tmp_path: Path) -> None:
    async with obeying(tmp_path, 1) as (peer, told):
        stream = await trio.open_unix_socket(str(tmp_path / f"{peer[-12:]}.sock"))
        async with stream:
            await stream.send_all(line)
            await stream.send_eof()
            with pytest.raises((trio.BrokenResourceError, AssertionError)) if len(line) > 4096 else trio.CancelScope():
                assert await stream.receive_some() == b""
                assert len(line) <= 4096
        assert told.within_s == []
        assert nodes_here(tmp_path) == [peer[-12:]]


async def test_a_directory_that_cannot_be_used_costs_the_socket_and_not_the_node(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    async with obeying(tmp_path / "run", 1):
        pass
