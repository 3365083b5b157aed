import hashlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.generation import chunks
from p2pgrid.core.prefix import PrefixCache, block_keys, join_keys, reusable, split_keys
from p2pgrid.errors import PeerMisbehaved
from p2pgrid.wire.messages import PREFIX_BLOCK, PREFIX_KEY_BYTES

bounded = settings(max_examples=100, deadline=None)
prompts = st.lists(st.sampled_from([0, 1, 2**31 - 1]), max_size=4 * PREFIX_BLOCK)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blocks_key_is_the_hash_of_the_key_before_and_its_tokens() -> None:
    tokens = [*range(PREFIX_BLOCK), *range(70_000, 70_000 + PREFIX_BLOCK), 5]
    first = hashlib.blake2b(struct.pack("<64i", *tokens[:64]), digest_size=16).digest()
    second = hashlib.blake2b(first + struct.pack("<64i", *tokens[64:128]), digest_size=16).digest()
    assert block_keys(tokens) == (first, second)


def test_the_keys_never_change() -> None:
    keys = block_keys(range(2 * PREFIX_BLOCK))
    assert [key.hex() for key in keys] == ["e838a5ae2d08d8a7627176a9c7e7974c", "2819d4e501d556f94e9da30db1f4273f"]


@given(prompts, prompts)
@bounded
def test_two_prompts_share_the_keys_of_the_whole_blocks_in_which_they_are_alike(
    one: list[int], other: list[int]
) -> None:
    keys = block_keys(one)
    assert len(keys) == len(one) // PREFIX_BLOCK
    for begins_alike in (other, [*one[: len(one) // 2], *other]):
        shared = 0
        while (stop := (shared + 1) * PREFIX_BLOCK) <= len(one) and one[:stop] == begins_alike[:stop]:
            shared += 1
        theirs = block_keys(begins_alike)
        assert theirs[:shared] == keys[:shared]
        assert not set(theirs[shared:]) & set(keys[shared:])


@given(st.lists(st.binary(min_size=PREFIX_KEY_BYTES, max_size=PREFIX_KEY_BYTES), max_size=20))
@bounded
def test_joined_keys_come_apart_again(keys: list[bytes]) -> None:
    assert split_keys(join_keys(keys)) == tuple(keys)


@given(st.binary(max_size=100).filter(lambda data: len(data) % PREFIX_KEY_BYTES))
@bounded
def test_half_a_key_is_misbehaviour(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved, match="no whole number of prefix keys"):
        split_keys(data)


# ── where a prompt begins ────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 700), st.integers(0, 700), st.integers(3, 130))
@settings(max_examples=400, deadline=None)
def test_what_is_left_of_a_prompt_runs_in_steps_of_more_than_one_and_its_last_token_alone(
    prompt_len: int, cached: int, chunk: int
) -> None:
    begin = reusable(prompt_len, cached)
    assert 0 <= begin <= cached
    assert begin <= prompt_len - 1
    left = prompt_len - 1 - begin
    assert begin >= min(cached, prompt_len - 1) - 1, "more is computed again than need be"
    assert all(stop - start > 1 for start, stop in chunks(left, chunk)) or (prompt_len, begin) == (2, 0)


def test_a_prompt_that_is_held_up_to_one_position_before_its_last_token_begins_one_earlier() -> None:
    assert [reusable(10, cached) for cached in (0, 7, 8, 9, 10, 64)] == [0, 7, 7, 9, 9, 9]
    assert [reusable(2, cached) for cached in (0, 1, 2)] == [0, 1, 1]
    assert reusable(1, 64) == 0


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────

chains = st.lists(st.integers(0, 1), min_size=1, max_size=5)
scopes = st.sampled_from([b"mine", b"yours"])


def keys_of(chain: Sequence[int]) -> list[bytes]:
    return [bytes(chain[: stop + 1]) for stop in range(len(chain))]


class PrefixCacheMachine(RuleBasedStateMachine):
    """The cache beside a table of when each block was used, by itself or on behalf of one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache[str]()
        self.used: dict[tuple[bytes, bytes], float] = {}
        self.sizes: dict[tuple[bytes, bytes], int] = {}
        self.time = 0

    def _touch(self, scope: bytes, keys: Sequence[bytes]) -> None:
        self.time += 1
        for i, key in enumerate(keys):
            self.used[scope, key] = self.time - i / 100  # the parent is the more recent one

    def _held(self, scope: bytes, keys: Sequence[bytes]) -> int:
        return next((i for i, key in enumerate(keys) if (scope, key) not in self.used), len(keys))

    @rule(scope=scopes, chain=chains, data=st.data(), nbytes=st.integers(0, 9))
    def put(self, scope: bytes, chain: list[int], data: st.DataObject, nbytes: int) -> None:
        keys = keys_of(chain)
        at = data.draw(st.integers(0, len(keys) - 1))
        self.cache.put(scope, keys, at, f"{scope!r} {keys[at]!r}", nbytes)
        if self._held(scope, keys) >= at:
            self.sizes.setdefault((scope, keys[at]), nbytes)
            self._touch(scope, keys[: at + 1])

    @rule(scope=scopes, chain=chains)
    def put_all(self, scope: bytes, chain: list[int]) -> None:
        keys = keys_of(chain)
        for at in range(len(keys)):
            self.cache.put(scope, keys, at, f"{scope!r} {keys[at]!r}", 3)
            self.sizes.setdefault((scope, keys[at]), 3)
            self._touch(scope, keys[: at + 1])

    @rule(scope=scopes, chain=chains)
    def find(self, scope: bytes, chain: list[int]) -> None:
        keys = keys_of(chain)
        held = keys[: self._held(scope, keys)]
        assert self.cache.find(scope, keys) == [f"{scope!r} {key!r}" for key in held]
        self._touch(scope, held)

    @rule(to_bytes=st.integers(0, 60))
    def shrink(self, to_bytes: int) -> None:
        self.cache.shrink(to_bytes)
        for oldest in sorted(self.used, key=self.used.__getitem__):
            if sum(self.sizes.values()) <= to_bytes:
                break
            del self.used[oldest], self.sizes[oldest]

    @rule(scope=scopes, chain=chains)
    def look_without_use(self, scope: bytes, chain: list[int]) -> None:
        assert self.cache.holds(scope, keys_of(chain)) == self._held(scope, keys_of(chain))

    @invariant()
    def it_holds_what_the_table_holds(self) -> None:
        assert len(self.cache) == len(self.used)
        assert self.cache.nbytes == sum(self.sizes.values())

    @invariant()
    def no_block_is_without_its_parent(self) -> None:
        assert all(len(key) == 1 or (scope, key[:-1]) in self.used for scope, key in self.used)
        assert all(self.cache.holds(scope, keys_of(list(key))) == len(key) for scope, key in self.used)


TestPrefixCache = PrefixCacheMachine.TestCase
TestPrefixCache.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_block_whose_parent_was_let_go_meanwhile_is_not_kept() -> None:
    cache = PrefixCache[str]()
    keys = keys_of([0, 0])
    cache.put(b"mine", keys, 0, "parent", 5)
    cache.shrink(0)
    cache.put(b"mine", keys, 1, "child", 5)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_the_end_of_a_conversation_goes_before_its_beginning() -> None:
    cache = PrefixCache[int]()
    keys = keys_of([0, 1, 0, 1])
    for at in range(4):
        cache.put(b"mine", keys, at, at, 10)
    cache.shrink(25)
    assert cache.find(b"mine", keys) == [0, 1]
