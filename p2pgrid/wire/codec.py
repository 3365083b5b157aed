"""Frames: `u32` big-endian length, then one MessagePack map. Sizes are checked before memory is taken.

`msgspec` packs, to the bytes that `msgpack` would; `msgpack` unpacks within limits, and `msgspec` turns the result into
the frozen structs of `messages`.
This is the border of rule 5: what `decode` and `FrameBuffer` return is typed and within its limits, and
everything else is `PeerMisbehaved`.
"""

import struct
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgpack
import msgspec

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.messages import Close, LinkControl, LinkMessage, Step, ToClient

FRAME_BYTES_MAX = 8 * 1024 * 1024
CONTAINERS_PER_MESSAGE_MAX = 2048
"""Maps and lists in one message; the largest that this version sends, `Open` along 256 hops, has 772."""
HEADER = struct.Struct("!I")

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_flat_decoder: msgspec.msgpack.Decoder[LinkMessage] = msgspec.msgpack.Decoder(LinkControl | Step | Close | ToClient)


def encode(message: msgspec.Struct) -> bytes:
    """One message as MessagePack, without the length."""
    return _encoder.encode(message)


def frame(message: msgspec.Struct) -> bytes:
    """One message as a whole frame, ready for one write.

    Raises ValueError when it is larger than `FRAME_BYTES_MAX`: a bug of the sender, not of the network.
    """
    payload = encode(message)
    if len(payload) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}")
    return HEADER.pack(len(payload)) + payload


def decode(payload: bytes | bytearray | memoryview, as_type: type[T] | Any) -> T:
    """The message in `payload`, which must be one of `as_type` (a struct or a union of structs).

    Raises PeerMisbehaved when it is anything else.
    """
    limit = len(payload)
    count = _container_counter()
    kind: Any = as_type
    only = _only(kind)
    try:
        plain = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            object_hook=count,
            list_hook=count,
            ext_hook=_no_extensions,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=min(limit, 1024),
            max_map_len=min(limit, 64),
            max_ext_len=0,
        )
        # `bytes` are native here: otherwise a string would be taken for base64.
        message: T = msgspec.convert((plain,), only, builtin_types=(bytes,)).message
        return message
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.UnpackException,
        msgspec.MsgspecError,
    ) as error:
        why = str(error) or type(error).__name__
        raise PeerMisbehaved(f"not a message of this protocol: {why}"[:300]) from error


def decode_link(payload: bytes) -> LinkMessage:
    """`decode` of what a link carries. Of that only `Open` holds lists, and so may unfold to more than its bytes: the
    others are what a stage takes at every step, and go the short way.
    """
    try:
        return _flat_decoder.decode(payload)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return decode(payload, LinkMessage)  # it is `Open`, or says what is wrong


@cache
def _only(as_type: Any) -> Any:
    """A struct of one `message`.

    What msgspec works out about a struct it keeps; about a bare union it works it out anew each time, which takes
    ten times as long as the conversion itself.
    """
    return msgspec.defstruct("Only", [("message", as_type)], array_like=True)


def _container_counter() -> Callable[[T], T]:
    """A hook that lets `CONTAINERS_PER_MESSAGE_MAX` maps and lists through.

    An empty list is one byte on the wire and 64 in memory: without it 8 MiB of them would take 512 MiB.
    """
    left = CONTAINERS_PER_MESSAGE_MAX

    def count(container: T) -> T:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {CONTAINERS_PER_MESSAGE_MAX} maps and lists in one message")
        return container

    return count


def _no_extensions(code: int, data: bytes) -> Any:
    raise ValueError(f"an extension type: {code}")


class FrameBuffer:
    """Cuts a byte stream into frames. Read big pieces, `feed` them, take what is complete."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads that `data` completes, in order.

        Raises PeerMisbehaved when a header promises more than the limit; nothing is allocated for it.
        """
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer, start)
            if size > self._frame_bytes_max:
                raise PeerMisbehaved(f"a frame of {size} bytes is over the limit of {self._frame_bytes_max}")
            stop = start + HEADER.size + size
            if len(self._buffer) < stop:
                break
            frames.append(bytes(memoryview(self._buffer)[start + HEADER.size : stop]))
            start = stop
        del self._buffer[:start]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)
