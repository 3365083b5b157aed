"""A system in a child process of its own, so that its memory, its CPU time and its start are its own.

One JSON line a request on its standard input, one a reply on its standard output. It ends when its input does, so
that it never outlives us.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from subprocess import PIPE

import msgspec
import trio

from p2pgrid.bench.systems import Timed
from p2pgrid.errors import LocalFault
from p2pgrid.folders import temporary_folder
from p2pgrid.swarm.processes import Member, end_members

READ_BYTES = 65536


class Request(msgspec.Struct, frozen=True):
    """Answer `prompt_ids` greedily with exactly `max_tokens` tokens."""

    number: int
    prompt_ids: tuple[int, ...]
    max_tokens: int


class Reply(msgspec.Struct, frozen=True):
    """`token_times_s` are seconds since the child took the request up. The first reply, number 0, says `ready`."""

    number: int
    token_times_s: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    buffer = bytearray()
    while data := await stream.receive_some(READ_BYTES):
        buffer += data
        *whole, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        for line in whole:
            yield bytes(line)


async def serve(answer: Callable[[Request], Awaitable[Reply]]) -> None:
    """The child's side: answer what comes on standard input, until that ends."""

    def say(reply: Reply) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()

    say(Reply(0))
    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stdin:
        async for line in lines_of(stdin):
            say(await answer(msgspec.json.decode(line, type=Request)))


class ChildSystem:
    """Our side. One request at a time; others wait, and their waiting counts. Made by `open_child`."""

    def __init__(self, name: str, member: Member) -> None:
        self.name = name
        self._member = member
        self._turn = trio.StrictFIFOLock()
        self._number = 0
        assert member.process.stdout is not None
        self._replies = lines_of(member.process.stdout)

    async def ask(self, prompt_ids: Sequence[int], max_tokens: int) -> Timed:
        """See `System.ask`. Raises LocalFault when the child has ended."""
        asked_at = trio.current_time()
        async with self._turn:
            waited_s = trio.current_time() - asked_at
            self._number += 1
            request = Request(self._number, tuple(prompt_ids), max_tokens)
            assert self._member.process.stdin is not None
            try:
                await self._member.process.stdin.send_all(msgspec.json.encode(request) + b"\n")
            except trio.BrokenResourceError as error:
                raise await self._why() from error
            reply = await self.receive(self._number)
        times = tuple(waited_s + time_s for time_s in reply.token_times_s)
        return Timed(times[0], times, reply.token_ids)

    async def receive(self, number: int) -> Reply:
        """The reply to request `number`; those to earlier requests, which nobody waits for any more, are dropped."""
        async for line in self._replies:
            reply = msgspec.json.decode(line, type=Reply)
            if reply.number == number:
                return reply
        raise await self._why()

    def pids(self) -> list[int]:
        return [self._member.process.pid]

    async def _why(self) -> LocalFault:
        await self._member.process.wait()
        return LocalFault(self._member.why_it_ended())


@asynccontextmanager
async def open_child(name: str, module: str, *arguments: str) -> AsyncIterator[ChildSystem]:
    """Start `python -m module arguments…`, which calls `serve`; end it on every exit. Raises LocalFault."""
    with temporary_folder() as folder:
        log = folder / "log"
        with log.open("wb") as sink:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", module, *arguments],
                stdin=PIPE,
                stdout=PIPE,
                stderr=sink,
                start_new_session=True,  # a Ctrl-C in the terminal reaches us alone
            )
        member = Member(name, process, log, folder / "state.json")
        try:
            system = ChildSystem(name, member)
            await system.receive(0)
            yield system
        finally:
            await end_members([member])
            if process.stdout is not None:
                await process.stdout.aclose()
