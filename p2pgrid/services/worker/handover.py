"""Handing a session over: a stage that leaves sends the row to a replica while steps still run, the rest when none do.

docs/protocols/kv-1.md is the protocol.
"""

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never

import msgspec
import trio

from p2pgrid.engine.stage import KvBlock
from p2pgrid.errors import Overloaded, PeerMisbehaved, PeerUnavailable
from p2pgrid.ids import PeerId
from p2pgrid.net.exchange import Conversation
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.services.worker.session import Here, Session
from p2pgrid.wire.messages import PREFIX_BLOCK, Contact, Hop, Open
from p2pgrid.wire.tensors import pack_ints, unpack_ints
from p2pgrid.wire.transfer_messages import (
    KV_PIECE_BYTES_MAX,
    KV_PROTOCOL,
    KvDone,
    KvOffer,
    KvRefused,
    KvRows,
    KvTaken,
)

PIECE_POSITIONS_MAX = PREFIX_BLOCK
NEARLY_ALL = 16
"""So few positions are left for when no step runs any more; a piece takes about as long as a step."""
ROUNDS_MAX = 8
"""Then a session that is quicker than the copying waits for it."""
NEXT_STEP_S_MAX = 1.0
"""An answer whose next step takes longer to come may as well be held in the middle of one, or is over."""
NEXT_STEP_SHARE = 1 / 3
"""Of the time that is left may go by until it comes, at most."""
HANDOVER_S_MAX = 30.0
SILENT_S_MAX = 5.0
"""Of one of the two, while the other one waits: it is gone."""


async def give(
    here: Here,
    transport: Transport,
    session: Session,
    to: Hop,
    tell: Callable[[], Awaitable[None]],
    left_s: float,
) -> None:
    """Have `to` hold what this stage holds of `session`, which runs no step here any more once most of it is there;
    then `tell` the client. `left_s` is for how long this node will be there.

    Raises PeerUnavailable, PeerMisbehaved when that comes to nothing.
    """
    with trio.move_on_after(HANDOVER_S_MAX):
        stream = await transport.open_stream(Contact(to.peer, to.addresses), KV_PROTOCOL)
        done = False
        try:
            await _Giver(here, session, Conversation(stream, SILENT_S_MAX)).give(to, left_s)
            await tell()
            done = True
        finally:
            with trio.CancelScope(shield=True):
                await (stream.aclose() if done else stream.reset())
        return
    raise PeerUnavailable(f"{to.peer} did not take the session over within {HANDOVER_S_MAX:.0f} s", to.peer)


class _Giver:
    def __init__(self, here: Here, session: Session, replica: Conversation) -> None:
        self._here = here
        self._session = session
        self._machine = session.seat.machine
        self._epoch = self._machine.epoch
        self._replica = replica
        self._piece_positions = min(PIECE_POSITIONS_MAX, KV_PIECE_BYTES_MAX // here.stage.position_bytes)

    async def give(self, to: Hop, left_s: float) -> None:
        if not self._piece_positions:
            raise PeerUnavailable("one position of this stage is more than a message holds", to.peer)
        machine, session = self._machine, self._session
        opening = machine.opening
        route = (*opening.route[: opening.hop], to, *opening.route[opening.hop + 1 :])
        offer = KvOffer(machine.client, msgspec.structs.replace(opening, route=route, prefix=b""))
        await self._replica.send(offer)
        answer = await self._replica.receive(KvTaken | KvRefused)
        if isinstance(answer, KvRefused):
            raise PeerUnavailable(f"{to.peer} does not take the session: {answer.reason}", to.peer)
        machine.changed_from = 0
        for _ in range(ROUNDS_MAX):
            if machine.length - machine.changed_from <= NEARLY_ALL:
                break
            await self._send_what_changed()
        self._check()
        await session.hold_between_steps(min(NEXT_STEP_S_MAX, NEXT_STEP_SHARE * left_s))
        await session.seat.at_rest()
        self._check()
        await self._send_what_changed()
        await self._replica.send(KvDone(machine.length))
        await self._replica.receive(KvTaken)
        self._check()

    async def _send_what_changed(self) -> None:
        machine = self._machine
        at, end = machine.changed_from, machine.length
        machine.changed_from = end
        # A draft that was taken back makes the row shorter meanwhile; then that changed too, and comes next.
        while at < (stop := min(at + self._piece_positions, end, machine.length)):
            tokens = machine.tokens[at:stop]
            kv = (await self._here.executor.run(partial(self._saved, at, stop))).tobytes()
            await self._replica.send(KvRows(at, pack_ints(tokens), kv, hashlib.sha256(kv).digest()))
            at = stop

    def _saved(self, start: int, stop: int) -> KvBlock:
        """In the executor's lane: there a row is given back only behind this, if its session lives now."""
        self._check()
        return self._here.stage.save(self._session.seat.row, start, stop)

    def _check(self) -> None:
        if self._session.seat.ended or self._session.latest.epoch != self._epoch:
            raise PeerUnavailable("the session ended, or has another route now")


class Taker:
    """The other end. `admit` begins a session that waits for its client, `drop` ends one that did not become whole."""

    def __init__(self, here: Here, admit: Callable[[PeerId, Open], Session], drop: Callable[[Session], None]) -> None:
        """`admit` raises Overloaded or PeerMisbehaved for what is not taken."""
        self._here = here
        self._admit = admit
        self._drop = drop

    async def answer(self, stream: ByteStream) -> None:
        """Take one session. Raises PeerMisbehaved, PeerUnavailable; the transport resets the stream then."""
        with trio.move_on_after(HANDOVER_S_MAX):
            giver = Conversation(stream, SILENT_S_MAX)
            offer: KvOffer = await giver.receive(KvOffer)
            try:
                session = self._admit(offer.client, offer.opening)
            except (Overloaded, PeerMisbehaved) as error:
                await giver.send(KvRefused(str(error)[:500]))
                return
            whole = False
            try:
                await giver.send(KvTaken())
                await self._fill(session, giver)
                await giver.send(KvTaken())
                await giver.finished()  # or the client was not told
                whole = True
            finally:
                if not whole and session.waits:
                    self._drop(session)
            return
        raise PeerUnavailable(f"{stream.peer} did not hand its session over within {HANDOVER_S_MAX:.0f} s")

    async def _fill(self, session: Session, giver: Conversation) -> None:
        while True:
            message = await giver.receive(KvRows | KvDone)
            if not session.waits:
                raise PeerUnavailable("the session ended, or goes on without the rest")
            match message:
                case KvRows():
                    await self._load(session, message)
                case KvDone(length=length):
                    if length != (came := session.seat.machine.length):
                        raise PeerMisbehaved(f"a row of {length} positions, of which {came} came")
                    return
                case _:
                    assert_never(message)

    async def _load(self, session: Session, rows: KvRows) -> None:
        machine, stage = session.seat.machine, self._here.stage
        tokens = unpack_ints(rows.tokens, stage.vocab).tolist()
        if rows.position > machine.length or rows.position + len(tokens) > machine.context_max:
            raise PeerMisbehaved(f"positions from {rows.position} on, behind a row of {machine.length}")
        if hashlib.sha256(rows.kv).digest() != rows.digest:
            raise PeerMisbehaved(f"keys and values from position {rows.position} on are not what was sent")
        block = stage.unpack(rows.kv, len(tokens))
        await self._here.executor.run(partial(stage.load, session.seat.row, rows.position, block))
        machine.take_over(rows.position, tokens)
        session.seat.drawer.saw(rows.position, tokens)
