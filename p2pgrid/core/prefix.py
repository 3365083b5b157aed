"""Prefixes of prompts: how they are named, which of them are kept, where a prompt that has one begins.

A prompt is cut into whole blocks of `PREFIX_BLOCK` tokens; a block's key is a hash over the key of the block before
it and its own tokens, so that equal keys mean equal beginnings.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.messages import PREFIX_BLOCK, PREFIX_KEY_BYTES

T = TypeVar("T")


def block_keys(tokens: Sequence[int]) -> tuple[bytes, ...]:
    """One key for each whole block of a text.

    key[i] = BLAKE2b-128(key[i-1] + the block's tokens as int32 little-endian), with no key before the first: a
    chain, as in vLLM's automatic prefix caching.
    """
    block_bytes = 4 * PREFIX_BLOCK
    packed = np.asarray(tokens, "<i4").tobytes()
    keys: list[bytes] = []
    key = b""
    for stop in range(block_bytes, len(packed) + 1, block_bytes):
        key = hashlib.blake2b(key + packed[stop - block_bytes : stop], digest_size=PREFIX_KEY_BYTES).digest()
        keys.append(key)
    return tuple(keys)


def join_keys(keys: Sequence[bytes]) -> bytes:
    """As they travel in `Open.prefix`."""
    return b"".join(keys)


def split_keys(data: bytes) -> tuple[bytes, ...]:
    """The inverse of `join_keys`. Raises PeerMisbehaved for anything but whole keys."""
    if len(data) % PREFIX_KEY_BYTES:
        raise PeerMisbehaved(f"{len(data)} bytes are no whole number of prefix keys")
    return tuple(data[at : at + PREFIX_KEY_BYTES] for at in range(0, len(data), PREFIX_KEY_BYTES))


def reusable(prompt_len: int, cached: int) -> int:
    """Where the prefill of a prompt begins when every stage holds its first `cached` positions: 0 <= it <= cached.

    The last token always runs, in a step of its own (`core.generation`). What is left before it is never exactly one
    position, unless the prompt has just two: a single row takes another kernel, whose last bits differ from the same
    row in a longer step.
    """
    begin = min(cached, prompt_len - 1)
    return begin - 1 if begin and prompt_len - 1 - begin == 1 else begin


class PrefixCache(Generic[T]):
    """Blocks by scope and key, the least recently used first. Scopes share nothing.

    A block is of use only behind those before it, so a parent is always more recently used than its children: whatever
    is evicted, no block is left without its parent.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[bytes, bytes], tuple[T, int]] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def nbytes(self) -> int:
        """Of all blocks, as they were given."""
        return self._nbytes

    def holds(self, scope: bytes, keys: Sequence[bytes]) -> int:
        """How many blocks of the beginning are here. Does not count as use."""
        found = 0
        while found < len(keys) and (scope, keys[found]) in self._blocks:
            found += 1
        return found

    def find(self, scope: bytes, keys: Sequence[bytes]) -> list[T]:
        """The blocks of the longest beginning that is here; they count as used now."""
        found = self.holds(scope, keys)
        for key in reversed(keys[:found]):  # the parent last
            self._blocks.move_to_end((scope, key))
        return [self._blocks[scope, key][0] for key in keys[:found]]

    def put(self, scope: bytes, keys: Sequence[bytes], at: int, block: T, nbytes: int) -> None:
        """Keep block number `at`. One that is here already stays; one whose parent is gone is of no use to anybody."""
        if self.holds(scope, keys[:at]) < at:
            return
        if (scope, keys[at]) not in self._blocks:
            self._blocks[scope, keys[at]] = (block, nbytes)
            self._nbytes += nbytes
        self.find(scope, keys[: at + 1])

    def shrink(self, to_bytes: int) -> None:
        """Let go of the least recently used, until no more than `to_bytes` are held."""
        while self._blocks and self._nbytes > to_bytes:
            _, (_, nbytes) = self._blocks.popitem(last=False)
            self._nbytes -= nbytes
