"""Frames: `u32` big-endian length, then one MessagePack map. Sizes are checked before memory is taken.

`msgpack` packs and unpacks within limits; `msgspec` turns the result into the frozen structs of `messages`.
This is the border of rule 5: what `decode` and `FrameBuffer` return is typed and within its limits, and
everything else is `PeerMisbehaved`.
"""

import struct
from typing import Any, TypeVar

import msgpack
import msgspec

from p2pgrid.errors import PeerMisbehaved

FRAME_BYTES_MAX = 8 * 1024 * 1024
HEADER = struct.Struct("!I")

T = TypeVar("T")


def encode(message: msgspec.Struct) -> bytes:
    """One message as MessagePack, without the length."""
    return msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)), use_bin_type=True)


def frame(message: msgspec.Struct) -> bytes:
    """One message as a whole frame, ready for one write.

    Raises ValueError when it is larger than `FRAME_BYTES_MAX`: a bug of the sender, not of the network.
    """
    payload = encode(message)
    if len(payload) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(payload)} bytes is over the limit of {FRAME_BYTES_MAX}")
    return HEADER.pack(len(payload)) + payload


def decode(payload: bytes | bytearray | memoryview, as_type: type[T] | Any) -> T:
    """The message in `payload`, which must be one of `as_type` (a struct or a union of structs)."""
    limit = len(payload)
    try:
        plain = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=min(limit, 65_536),
            max_map_len=min(limit, 64),
            max_ext_len=0,
        )
        return msgspec.convert(plain, as_type)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.UnpackException,
        msgspec.MsgspecError,
    ) as error:
        raise PeerMisbehaved(f"not a message of this protocol: {error}"[:300]) from error


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
