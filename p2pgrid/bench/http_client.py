"""The system `gateway`: a `p2pgrid serve` in front of the swarm, asked over HTTP."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from p2pgrid.bench.systems import Timed
from p2pgrid.errors import LocalFault
from p2pgrid.folders import temporary_folder
from p2pgrid.swarm.processes import Member, end_members, start_member, wait_for_phase

DATA = b"data: "


@dataclass
class HttpSystem:
    """A client of a gateway."""

    port: int
    model: str
    gateway: Member
    never: Sequence[int]
    """Tokens that no answer has: those that would end it."""
    name: str = "gateway"

    async def ask(self, prompt_ids: Sequence[int], max_tokens: int) -> Timed:
        """See `System.ask`; connecting counts. Raises LocalFault when the gateway refuses, or breaks off."""
        asked_at = trio.current_time()
        times: list[float] = []
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(self._request(prompt_ids, max_tokens))
            async for document in _events(stream):
                for choice in document["choices"]:
                    tokens = (choice["logprobs"] or {"tokens": ()})["tokens"]
                    times += [trio.current_time() - asked_at] * len(tokens)
        if len(times) != max_tokens:
            raise LocalFault(f"the gateway gave {len(times)} tokens instead of {max_tokens}: see {self.gateway.log}")
        return Timed(times[0], tuple(times), ())

    def pids(self) -> list[int]:
        return [self.gateway.process.pid]

    def _request(self, prompt_ids: Sequence[int], max_tokens: int) -> bytes:
        """In HTTP 1.0, where the answer is all that comes until the end."""
        body = {"model": self.model, "prompt": list(prompt_ids), "max_tokens": max_tokens, "temperature": 0}
        # With log-probabilities every token has an event, also one that is no whole character.
        body |= {"stream": True, "logprobs": 0, "logit_bias": {str(token): -100 for token in self.never}}
        data = msgspec.json.encode(body)
        head = f"POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        return f"{head}Content-Type: application/json\r\n\r\n".encode() + data


async def _events(stream: trio.SocketStream) -> AsyncIterator[Any]:
    """The documents of a stream of server-sent events, each as soon as it is there."""
    buffer = b""
    async for data in stream:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(DATA) and line != DATA + b"[DONE]":
                yield msgspec.json.decode(line.removeprefix(DATA))


@asynccontextmanager
async def open_http_system(bootstrap: Sequence[str], model: str, never: Sequence[int]) -> AsyncIterator[HttpSystem]:
    """Start a gateway to the swarm behind `bootstrap`. Raises LocalFault."""
    with temporary_folder() as folder:
        joining = [arg for address in bootstrap for arg in ("--bootstrap", address)]
        command = ["serve", *joining, "--listen", "127.0.0.1:0", "--model", model]
        member = await start_member("gateway", command, folder)
        try:
            state = await wait_for_phase(member, "serving")
            assert state.gateway is not None
            yield HttpSystem(int(state.gateway.rpartition(":")[2]), model, member, never)
        finally:
            await end_members([member])
