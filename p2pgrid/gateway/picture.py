"""What the page is shown of the swarm at one moment, and what has changed from one moment to another."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from p2pgrid.gateway.activity import RunningAnswer
from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.node.survey import ModelSurvey
from p2pgrid.wire.adverts import Advert

NODES_SHOWN_MAX = 400
"""Of each model; the rest is counted, and counts for its health."""


class ModelFacts(msgspec.Struct, frozen=True):
    """What the page tells of a model besides what its nodes say. 0 = not known yet."""

    context: int = 0
    """Token positions of one session, at most."""
    weights_bytes: int = 0


class ModelShown(msgspec.Struct, frozen=True):
    name: str
    layers: int
    state: str
    reasons: tuple[str, ...]
    missing: tuple[Span, ...]
    nodes: int
    """All that are known, also those that are not shown."""
    tokens_per_s: float
    tokens_per_s_max: float
    token_seen_at_s: float | None
    """Unix time at which a token last went through all layers, as far as is known."""
    context: int
    weights_bytes: int


class NodeShown(msgspec.Struct, frozen=True):
    """One node, by its advert."""

    model: ModelId
    state: str
    span: Span | None
    moving_to: Span | None
    away: bool
    """Its owner needs the machine."""
    since_s: float
    step_ms: float
    queue_ms: float
    sessions_open: int
    sessions_free: int
    kv_used: float | None
    """The share of its KV cache that is taken, 0 to 1; None = it does not say."""
    tokens_per_s: float
    tokens_per_s_max: float
    rtt_ms: float | None
    """From here and back; None without a link."""
    delays_ms: dict[PeerId, float]
    """One way to its neighbours, by its own word."""
    agent: str
    address: str


class StageShown(msgspec.Struct, frozen=True):
    peer: PeerId
    span: Span


class SessionShown(msgspec.Struct, frozen=True):
    """An answer that is being generated through this gateway."""

    model: ModelId
    route: tuple[StageShown, ...]
    tokens: int
    """Until now."""
    recoveries: int


class GatewayShown(msgspec.Struct, frozen=True):
    """The process that serves the page."""

    peer: PeerId
    addresses: tuple[str, ...]
    version: str
    since_s: float
    bootstrap: tuple[str, ...]
    """Addresses by which further nodes join the same swarm."""
    peers_known: int
    links: int
    model: ModelId | None
    span: Span | None
    """The layers that this very process serves, if it does."""
    answers: int
    """Begun since the start."""
    tokens: int


class Picture(msgspec.Struct, frozen=True):
    gateway: GatewayShown
    models: dict[ModelId, ModelShown]
    nodes: dict[PeerId, NodeShown]
    sessions: dict[str, SessionShown]


def show_model(found: ModelSurvey, facts: ModelFacts, now_s: float) -> ModelShown:
    """A model by a survey that was made at Unix time `now_s`."""
    seen = found.health
    return ModelShown(
        name=found.name,
        layers=found.layers,
        state=seen.state,
        reasons=seen.reasons,
        missing=seen.missing,
        nodes=len(found.adverts),
        tokens_per_s=round(found.tokens_per_s, 1),
        tokens_per_s_max=round(found.tokens_per_s_bound, 1),
        token_seen_at_s=None if seen.canary_age_s is None else round(now_s - seen.canary_age_s),
        context=facts.context,
        weights_bytes=facts.weights_bytes,
    )


def show_node(advert: Advert, rtt_s: float | None) -> NodeShown:
    """Figures are rounded to what can be read, so that not every measurement is a change."""
    return NodeShown(
        model=ModelId(advert.model),
        state=advert.state,
        span=advert.span,
        moving_to=advert.moving_to,
        away=advert.away,
        since_s=round(advert.since_s),
        step_ms=_rounded(advert.step_ms),
        queue_ms=_rounded(advert.queue_ms),
        sessions_open=advert.sessions_open,
        sessions_free=advert.sessions_free,
        kv_used=_kv_used(advert),
        tokens_per_s=round(advert.tokens_per_s, 1),
        tokens_per_s_max=round(advert.tokens_per_s_max, 1),
        rtt_ms=None if rtt_s is None else _rounded(1000 * rtt_s),
        delays_ms={PeerId(peer): _rounded(delay) for peer, delay in advert.delays_ms.items()},
        agent=advert.agent,
        address=advert.addresses[0].split("/p2p/")[0] if advert.addresses else "",
    )


def show_session(answer: RunningAnswer) -> SessionShown:
    """An answer by its figures: what is asked and said is not shown."""
    route = tuple(StageShown(PeerId(hop.peer), hop.span) for hop in answer.route)
    return SessionShown(answer.model, route, answer.tokens, len(answer.recoveries))


def shown(adverts: Sequence[Advert]) -> Sequence[Advert]:
    """Those of a model's nodes that the page gets. Peer ids are hashes, so these are a sample of all."""
    return sorted(adverts, key=lambda advert: advert.peer)[:NODES_SHOWN_MAX]


def changes(before: Picture, after: Picture) -> dict[str, Any]:
    """What turns `before` into `after`: of each part the entries that are new or different; None for those gone."""
    found: dict[str, Any] = {}
    if before.gateway != after.gateway:
        found["gateway"] = after.gateway
    for part in ("models", "nodes", "sessions"):
        differing = _differing(getattr(before, part), getattr(after, part))
        if differing:
            found[part] = differing
    return found


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    gone = {key: None for key in before if key not in after}
    return {**gone, **{key: value for key, value in after.items() if before.get(key) != value}}


def _kv_used(advert: Advert) -> float | None:
    return round(1 - advert.positions_free / advert.positions_max, 2) if advert.positions_max else None


def _rounded(figure: float) -> float:
    """To two digits."""
    return float(f"{figure:.2g}")
