"""Looking at the swarm for the page: from the gateway's view and its answers to a picture."""

import structlog
import trio

import p2pgrid
from p2pgrid.errors import P2pgridError
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.picture import (
    GatewayShown,
    ModelFacts,
    ModelShown,
    NodeShown,
    Picture,
    SessionShown,
    show_model,
    show_node,
    show_session,
    shown,
)
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.node.survey import survey_of

log = structlog.get_logger()

LEARN_AGAIN_S = 10.0


class Looker:
    """Takes pictures of the swarm as `gateway` sees it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._since_s = gateway.now_s()
        self._facts: dict[ModelId, ModelFacts] = {}

    async def learn(self) -> None:
        """Fetch what is to be told of the models that are served, until cancelled."""
        while True:
            for survey in self._gateway.models.surveys():
                if survey.id not in self._facts:
                    await self._learn(survey.id)
            await trio.sleep(LEARN_AGAIN_S)

    async def _learn(self, model: ModelId) -> None:
        try:
            asker = await self._gateway.models.asker(model)
        except P2pgridError as error:
            log.debug("a model on the page is not described", model=model, error=str(error))
        else:
            self._facts[model] = ModelFacts(asker.context_max, asker.description.manifest.weights_bytes)

    def look(self) -> Picture:
        """All of it."""
        peer = self._gateway.peer
        now_s = self._gateway.now_s()
        models: dict[ModelId, ModelShown] = {}
        nodes: dict[PeerId, NodeShown] = {}
        for model, name in self._gateway.models.names.items():
            found = survey_of(peer, model, name, self._token_seen_at_s(model))
            if not found.adverts:
                continue
            models[model] = show_model(found, self._facts.get(model, ModelFacts()), now_s)
            nodes |= {
                PeerId(advert.peer): show_node(advert, peer.links.rtt_s(advert.peer)) for advert in shown(found.adverts)
            }
        return Picture(self._look_at_self(), models, nodes, self.sessions())

    def sessions(self) -> dict[str, SessionShown]:
        """The answers that run."""
        answers = self._gateway.activity.answers()
        return {str(answer.number): show_session(answer) for answer in answers if answer.state == "running"}

    def _look_at_self(self) -> GatewayShown:
        gateway, peer = self._gateway, self._gateway.peer
        own = peer.discovery.own_advert()
        return GatewayShown(
            peer=peer.transport.peer,
            addresses=peer.transport.addresses,
            version=p2pgrid.__version__,
            since_s=round(self._since_s),
            bootstrap=gateway.bootstrap,
            peers_known=len(peer.view.adverts()),
            links=len(peer.links.peers()),
            model=None if own is None else ModelId(own[0].model),
            span=None if own is None else own[0].span,
            answers=gateway.activity.begun,
            tokens=gateway.activity.tokens,
        )

    def _token_seen_at_s(self, model: ModelId) -> float:
        """Unix time at which a token last came here, and so had gone through a whole route; 0 = never."""
        answers = self._gateway.activity.answers()
        seen = [answer.last_token_s for answer in answers if answer.model == model and answer.last_token_s is not None]
        return self._gateway.now_s() - (trio.current_time() - max(seen)) if seen else 0.0
