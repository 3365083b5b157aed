"""What finished sessions leave behind on a stage: the keys and values of their prompts, for those that begin alike."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2pgrid.core.prefix import PrefixCache, block_keys, split_keys
from p2pgrid.core.stage_session import StageSession
from p2pgrid.engine.stage import Executor, KvBlock, Stage
from p2pgrid.wire.messages import PREFIX_BLOCK


@dataclass(frozen=True)
class _Held:
    tokens: tuple[int, ...]
    kv: KvBlock


class Prefixes:
    """Blocks of saved positions, within the room that sessions leave.

    `room()` is how many bytes may be held just now; what is over it goes at the next `keep` or `trim`.
    """

    def __init__(self, stage: Stage, executor: Executor, room: Callable[[], int]) -> None:
        self._stage = stage
        self._executor = executor
        self._room = room
        self._cache = PrefixCache[_Held]()
        self._expected = 0
        self._kept = 0
        self._news = trio.Event()

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def trim(self) -> None:
        """Let go of what sessions need the room for, the least recently used first."""
        self._cache.shrink(self._room())

    def forget(self) -> None:
        """Let go of everything: nobody will come for it."""
        self._cache.shrink(0)

    def expect(self) -> None:
        """A `keep` is on its way: whoever opens a session now may be about to go on from what it brings."""
        self._expected += 1

    async def fill(self, machine: StageSession, row: int) -> None:
        """Begin the session's row with the longest prefix of its prompt that is held here."""
        expected = self._expected  # not what is expected later: it might never end
        while self._kept < expected and machine.opening.prefix:
            await self._news.wait()
        found = self._cache.find(_scope(machine), split_keys(machine.opening.prefix))
        found = found[: machine.context_max // PREFIX_BLOCK]
        if not found:
            return

        def load() -> None:
            for at, held in enumerate(found):
                self._stage.load(row, at * PREFIX_BLOCK, held.kv)

        await self._executor.run(load)
        machine.hold([token for held in found for token in held.tokens])

    async def keep(self, machine: StageSession, row: int) -> None:
        """Save the blocks of the session's prompt that are not held yet, as far as there is room; once `expect`ed."""
        try:
            await self._keep(machine, row)
        finally:
            self._kept += 1
            self._news.set()
            self._news = trio.Event()

    async def _keep(self, machine: StageSession, row: int) -> None:
        tokens = machine.prefilled
        keys = block_keys(tokens)
        scope = _scope(machine)
        known = self._cache.holds(scope, keys)
        block_bytes = PREFIX_BLOCK * self._stage.position_bytes
        stop = min(len(keys), self._room() // block_bytes)
        if known >= stop:
            self._cache.find(scope, keys)  # used just now
            return

        def save() -> list[KvBlock]:
            return [self._stage.save(row, at * PREFIX_BLOCK, (at + 1) * PREFIX_BLOCK) for at in range(known, stop)]

        for at, kv in enumerate(await self._executor.run(save), known):
            held = _Held(tuple(tokens[at * PREFIX_BLOCK : (at + 1) * PREFIX_BLOCK]), kv)
            self._cache.put(scope, keys, at, held, kv.nbytes)
        self.trim()


def _scope(machine: StageSession) -> bytes:
    """Whose prompts may be shared: those of one client, in one of its scopes and wire formats, behind the same stages.

    The stages before are part of it because they compute what is kept here: a lying one must spoil nothing but the
    sessions that it is part of.
    """
    opening = machine.opening
    before = [f"{hop.peer} {hop.span}" for hop in opening.route[: opening.hop]]
    return hashlib.blake2b(
        "\n".join([machine.client, *before, opening.wire, opening.cache_scope]).encode(), digest_size=16
    ).digest()
