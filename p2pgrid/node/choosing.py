"""Which layers a node takes when it joins, so that nodes that join at once agree without asking each other."""

import trio

from p2pgrid.core.placement import plan_joins, settle
from p2pgrid.core.rebalancing import spans_to_come
from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.node.peer import Peer

JOIN_QUIET_S = 0.8
"""A joining node decides once no new joiner was heard of for this long, so that nodes started together agree."""
JOIN_S_MAX = 4.0


async def choose_span(peer: Peer, model: ModelId, layers: int, span_max: int) -> Span:
    """The span to take, once those who join now are known. The caller has said that it is one of them."""
    heard: set[PeerId] = set()
    quiet_since = trio.current_time()

    def nothing_new() -> bool:
        nonlocal quiet_since
        now_heard = {a.peer for a in peer.view.adverts(model)}
        if not now_heard <= heard:
            heard.update(now_heard)
            quiet_since = trio.current_time()
        return trio.current_time() - quiet_since >= JOIN_QUIET_S

    await peer.discovery.wait_until(model, nothing_new, JOIN_S_MAX)
    others = peer.view.adverts(model)
    joiners = {a.peer: a.span_max for a in others if a.state == "joining" and a.span is None}
    joiners[peer.transport.peer] = span_max
    taken = [*spans_to_come(others, "serving"), *spans_to_come(others, "joining")]
    return plan_joins(layers, taken, joiners)[peer.transport.peer]


async def look_again(peer: Peer, model: ModelId, layers: int, span_max: int, current: Span) -> Span:
    """The span to hold after all: another one than `current` if, meanwhile, somebody before us has chosen the same."""
    await peer.discovery.refresh(model)
    others = peer.view.adverts(model)
    claims = {a.peer: a.span for a in others if a.state == "joining" and a.span is not None}
    return settle(layers, span_max, peer.transport.peer, current, spans_to_come(others, "serving"), claims)
