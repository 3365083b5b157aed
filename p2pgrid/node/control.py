"""Telling a node of this machine what to do: one socket a node, in a directory that is its owner's alone.

A connection carries one line of JSON each way at a time: `{"drain_s": 30.0}`, and then `{"sessions": 8}` whenever that
changes, until the node has closed the socket. Sockets of killed nodes are removed by the next one that comes or goes.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import trio

from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.ids import PeerId

log = structlog.get_logger()

NAME_CHARS = 12
"""Of the end of a peer id: paths of sockets hold 107 bytes."""
LINE_BYTES_MAX = 4096
LOOK_S = 0.1
DRAIN_S_MAX = 3600.0


class Drain(msgspec.Struct, frozen=True):
    """Hand the sessions over and leave, within so long."""

    drain_s: float


class Draining(msgspec.Struct, frozen=True):
    sessions: int


async def obey(
    folder: Path,
    peer: PeerId,
    drain: Callable[[float], None],
    sessions: Callable[[], int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Do what is asked through a socket in `folder`, until cancelled. That there can be none is only logged."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError, msgspec.MsgspecError):
                asked = msgspec.json.decode(await _line(stream), type=Drain)
                drain(min(max(asked.drain_s, 0.0), DRAIN_S_MAX))
                told: int | None = None
                while True:
                    if (left := sessions()) != told:
                        told = left
                        await stream.send_all(msgspec.json.encode(Draining(left)) + b"\n")
                    await trio.sleep(LOOK_S)

    path = _path(folder, peer)
    try:
        sweep(folder)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(path)))
    except OSError as error:
        log.warning("this node cannot be told to drain but by a signal", socket=str(path), why=error.strerror)
        task_status.started()
        return
    try:
        task_status.started()
        await trio.serve_listeners(serve, [listener])
    finally:
        path.unlink(missing_ok=True)
        sweep(folder)


def nodes_here(folder: Path) -> list[str]:
    """The ends of the peer ids of nodes that take orders here."""
    return sorted(path.stem for path in folder.glob("*.sock") if answers(path))


def sweep(folder: Path) -> None:
    """Remove the sockets behind which nobody listens any more."""
    for path in folder.glob("*.sock"):
        if answers(path) is False:
            with contextlib.suppress(OSError):
                path.unlink()


async def ask_to_drain(folder: Path, who: str, within_s: float, tell: Callable[[int], None]) -> None:
    """Have the node whose peer id is or ends in `who` leave; `tell` hears how many sessions it has left.

    Returns when it has left. Raises BadInput when there is no such node, LocalFault when it cannot be asked.
    """
    path = _find(folder, who)
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise LocalFault(f"node {path.stem} does not take orders ({error.strerror}): is it yours?") from error
    async with stream:
        try:
            await stream.send_all(msgspec.json.encode(Drain(within_s)) + b"\n")
            while line := await _line(stream):
                tell(msgspec.json.decode(line, type=Draining).sessions)
        except trio.BrokenResourceError:
            return


def _find(folder: Path, who: str) -> Path:
    known = nodes_here(folder)
    found = [stem for stem in known if stem.endswith(who[-NAME_CHARS:])] if who else known
    if len(found) == 1:
        return folder / f"{found[0]}.sock"
    here = ", ".join(f"…{stem}" for stem in known) or "none"
    if not found:
        none = f"no node {who} runs on this machine; those that do: {here}".replace("  ", " ")
        raise BadInput(f"{none}. A node of another machine takes orders there only, from whoever runs it")
    raise BadInput(f"several nodes run on this machine, say which one: {here}")


def _path(folder: Path, peer: PeerId) -> Path:
    return folder / f"{peer[-NAME_CHARS:]}.sock"


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    coming = path.with_suffix(".new")  # what has its name listens already, so that nobody takes it for a leftover
    coming.unlink(missing_ok=True)  # of an earlier process with this identity, which has ended: ids have one owner
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(coming))
        listening.listen(4)
        coming.replace(path)
    except OSError:
        listening.close()
        raise
    return listening


def answers(path: Path) -> bool | None:
    """Whether somebody listens at that socket; None where it cannot be told, because it is another user's."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # it is behind with its callers, like one that was stopped
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return None
        return True


async def _line(stream: trio.SocketStream) -> bytes:
    """The next line without its end; what came before the stream ended, if it ends first."""
    line = bytearray()
    while len(line) < LINE_BYTES_MAX:
        data = await stream.receive_some(1)
        if not data or data == b"\n":
            break
        line += data
    return bytes(line)
