"""The swarm as one participant sees it: which models can be used and why not, their nodes, what they could give."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from p2pgrid.core.health import CANARY_S_MAX, Health, health, layers_of
from p2pgrid.core.throughput import throughput_bound, tokens_per_s
from p2pgrid.errors import P2pgridError
from p2pgrid.ids import ModelId
from p2pgrid.node.canary import send_canary
from p2pgrid.node.peer import Peer
from p2pgrid.wire.adverts import Advert

PEERS_MAX = 64
"""So many nodes are asked whether they are there; what is said of others is what those say."""


@dataclass(frozen=True)
class ModelSurvey:
    """One model in a swarm."""

    id: ModelId
    name: str
    layers: int
    """0 when no node is known."""
    health: Health
    own_canary: bool
    """Whether the token that proves it was sent through for this survey."""
    adverts: tuple[Advert, ...]

    @property
    def usable(self) -> bool:
        return self.health.state != "unavailable"

    @property
    def tokens_per_s(self) -> float:
        """What comes out of the last stages now."""
        return tokens_per_s(self.adverts, self.layers)

    @property
    def tokens_per_s_bound(self) -> float:
        """What could come out at most."""
        return throughput_bound(self.adverts, self.layers)


async def ask_around(peer: Peer, models: Iterable[ModelId]) -> None:
    """Bring the view of these models up to date: find providers, then ask also those whom they know."""
    models = list(models)
    for look_up in (True, False):
        for model in models:
            await peer.discovery.refresh(model, look_up=look_up, peers_max=PEERS_MAX)


def survey_of(peer: Peer, model: ModelId, name: str | None = None, own_canary_at_s: float = 0.0) -> ModelSurvey:
    """What the view says of `model` now. `own_canary_at_s`: Unix time at which we saw a token go through ourselves."""
    adverts = tuple(peer.adverts(model))
    layers = layers_of(adverts)
    found = health(adverts, layers, peer.discovery.now_s(), own_canary_at_s)
    said = next((advert.model_name for advert in adverts if advert.model_name), model[:12])
    return ModelSurvey(model, name or said, layers, found, bool(own_canary_at_s), adverts)


async def examine(peer: Peer, model: ModelId, name: str | None = None) -> ModelSurvey:
    """The same, and where nobody has seen a token go through lately, we send one."""
    found = survey_of(peer, model, name)
    age_s = found.health.canary_age_s
    if not found.usable or (age_s is not None and age_s <= CANARY_S_MAX):
        return found
    try:
        await send_canary(peer, model, found.layers)
    except P2pgridError as error:
        found = survey_of(peer, model, name)  # whom it has lost is no longer in the view
        if not found.usable:
            return found
        reasons = (*found.health.reasons, f"one that was sent just now was lost: {error}")
        return replace(found, health=replace(found.health, reasons=reasons))
    return survey_of(peer, model, name, peer.discovery.now_s())


def survey_document(found: ModelSurvey) -> dict[str, Any]:
    """A survey for scripts."""
    seen = found.health
    return {
        "model": found.name,
        "model_id": found.id,
        "layers": found.layers,
        "health": seen.state,
        "reasons": list(seen.reasons),
        "served": found.usable,
        "missing": [[s.start, s.stop] for s in seen.missing],
        "replicas_min": seen.replicas_min,
        "canary_age_s": None if seen.canary_age_s is None else round(seen.canary_age_s, 1),
        "canary_by": None if seen.canary_age_s is None else "status" if found.own_canary else "swarm",
        "tokens_per_s": round(found.tokens_per_s, 1),
        "tokens_per_s_bound": round(found.tokens_per_s_bound, 1),
        "nodes": [_node(advert) for advert in found.adverts],
    }


def _node(advert: Advert) -> dict[str, Any]:
    return {
        "peer_id": advert.peer,
        "addresses": list(advert.addresses),
        "state": advert.state,
        "layers": None if advert.span is None else [advert.span.start, advert.span.stop],
        "away": advert.away,
        "moving_to": None if advert.moving_to is None else [advert.moving_to.start, advert.moving_to.stop],
        "step_ms": round(advert.step_ms, 3),
        "queue_ms": round(advert.queue_ms, 3),
        "sessions_free": advert.sessions_free,
        "sessions_open": advert.sessions_open,
        "positions_free": advert.positions_free,
        "positions_max": advert.positions_max,
        "tokens_per_s": round(advert.tokens_per_s, 1),
        "tokens_per_s_max": round(advert.tokens_per_s_max, 1),
        "delays_ms": {other: round(ms, 3) for other, ms in sorted(advert.delays_ms.items())},
        "agent": advert.agent,
    }
