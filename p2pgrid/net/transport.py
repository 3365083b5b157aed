"""The port to the network: what services need of it, whether it is libp2p or a simulation in memory."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pgrid.ids import PeerId
from p2pgrid.wire.messages import Contact

DHT_KEY_BYTES_MAX = 50


class ByteStream(Protocol):
    """An ordered, encrypted byte stream to one authenticated peer. Whoever opened it closes it.

    One task reads and one task writes at a time; a write is never cancelled half-way by its caller
    (`net.link` has one writer task a stream for that reason).
    """

    @property
    def peer(self) -> PeerId: ...

    async def send_all(self, data: bytes) -> None:
        """Raises PeerUnavailable when the peer is gone."""

    def try_send(self, data: bytes) -> bool:
        """Write in the caller's own turn, while no `send_all` is under way; False where that cannot be.

        After True `data` is the stream's to write; what the system did not take yet goes out with the next `send_all`,
        which may be one of no bytes: `unsent` says whether there has to be one. Raises as `send_all`.
        """

    @property
    def unsent(self) -> bool: ...

    async def receive_some(self) -> bytes:
        """Some bytes, or `b""` when the peer finished. Raises PeerUnavailable when it is gone."""

    async def aclose(self) -> None:
        """Finish politely and let go. Never raises, never waits long."""

    async def reset(self) -> None:
        """Let go at once. Never raises."""


StreamHandler = Callable[[ByteStream], Awaitable[None]]


class Transport(Protocol):
    """This node's place in the network. Made by an async context manager of each adapter, closed by it."""

    @property
    def peer(self) -> PeerId:
        """Our own id."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs, each with `/p2p/<id>`, at which others can dial us."""

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` with each incoming stream of `protocol`.

        The transport owns the stream: it closes it when the handler returns, and resets it (and logs) when
        the handler raises. No exception of a handler reaches another one.
        """

    async def open_stream(self, contact: Contact, protocol: str) -> ByteStream:
        """Dial if there is no connection yet. Raises PeerUnavailable."""

    async def announce(self, key: str) -> None:
        """Write ourselves into the DHT as a provider of `key` (50 bytes at most)."""

    async def find_providers(self, key: str) -> list[Contact]:
        """Who wrote itself there, ourselves left out; an empty list when nobody answers."""
