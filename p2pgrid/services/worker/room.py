"""The room of a stage: rows and bytes, for sessions that run and for what finished ones left behind."""

from collections.abc import Callable
from functools import partial

import trio

from p2pgrid.core.kv_budget import KvBudget
from p2pgrid.core.stage_session import StageSession
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.errors import Overloaded, PeerMisbehaved
from p2pgrid.services.worker.prefixes import Prefixes
from p2pgrid.services.worker.seat import Seat
from p2pgrid.services.worker.sent import SentLog

SESSION_POSITIONS = 1024
"""What an ordinary session is taken for when a node says for how many more it has room."""


class Room:
    """Gives each session a seat, and takes it back. `is_closed()` says whether no new one is let in."""

    def __init__(self, stage: Stage, executor: Executor, is_closed: Callable[[], bool]) -> None:
        self._stage = stage
        self._executor = executor
        self._is_closed = is_closed
        self._free_rows = list(reversed(range(stage.rows)))
        self._budget = KvBudget(stage.kv_positions * stage.position_bytes)
        self.sent = SentLog()
        self.prefixes = Prefixes(stage, executor, lambda: self._budget.cache_room)

    @property
    def sessions_free(self) -> int:
        ordinary = min(SESSION_POSITIONS, self._stage.context_max) * self._stage.position_bytes
        return 0 if self._is_closed() else min(len(self._free_rows), self._budget.cache_room // ordinary)

    @property
    def positions_free(self) -> int:
        """Token positions for which new sessions can reserve room."""
        return 0 if self._is_closed() else self._budget.cache_room // self._stage.position_bytes

    @property
    def positions_max(self) -> int:
        """For how many there is room when no session is open."""
        return self._budget.bytes_max // self._stage.position_bytes

    @property
    def nbytes(self) -> int:
        """What sessions have reserved and finished ones have left behind."""
        return self._budget.reserved + self.prefixes.nbytes

    def take(self, machine: StageSession) -> Seat:
        """Room for a session. Raises Overloaded without any now, PeerMisbehaved for one that could never have it."""
        need = machine.context_max * self._stage.position_bytes
        if not self._budget.fits_ever(need):
            raise PeerMisbehaved(f"{machine.context_max} positions are more than this node has memory for")
        if self._is_closed() or not self._free_rows or not self._budget.reserve(machine.id, need, trio.current_time()):
            raise Overloaded("no room for another session now", self._budget.retry_after_s())
        self.prefixes.trim()
        return Seat(machine, self._free_rows.pop(), self.sent.open())

    async def give_back(self, seat: Seat) -> None:
        seat.sent.close()
        # In the executor's lane, so behind a step of this row that may still be running.
        await self._executor.run(partial(self._stage.release, seat.row))
        self._free_rows.append(seat.row)
        self._free_rows.sort(reverse=True)  # low rows first: those of a batch had best lie next to each other
        self._budget.release(seat.machine.id, trio.current_time())
        self.prefixes.trim()
