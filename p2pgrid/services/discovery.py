"""Finding peers and being found: provider records in the DHT, signed adverts between peers, a local view."""

import hashlib
import math
import random
from collections.abc import Callable

import msgspec
import structlog
import trio

from p2pgrid.core.swarm_view import SwarmView
from p2pgrid.errors import PeerError, PeerMisbehaved
from p2pgrid.ids import ModelId, PeerId
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.settings import DiscoverySettings
from p2pgrid.wire.adverts import (
    ADVERT_PROTOCOL,
    ADVERTS_PER_MESSAGE_MAX,
    KNOWN_TAG_BYTES,
    LOST_MAX,
    Advert,
    Adverts,
    Exchange,
    Lost,
    SignedAdvert,
)
from p2pgrid.wire.fields import ADDRESSES_MAX
from p2pgrid.wire.messages import Contact
from p2pgrid.wire.signing import Identity, open_advert

log = structlog.get_logger()

WITHDRAW_S_MAX = 0.5
EARLY_PAUSE_S = (0.1, 0.4)
"""When a peer was lost the next rounds come this soon, and tell of it."""
EARLY_ROUNDS = 2
EARLY_PEERS = 3
"""So few are told in such a round, as each of them goes on telling: a swarm that moves its answers to the peers that
are left needs the processor for them."""
DOUBT_S = 1.0
"""For so long after a peer has answered us, others who say that they lost it are not believed."""
LOOK_UP_S_MAX = 60.0
"""The DHT is asked at least this often."""
LOOK_UP_AFTER_LOSS_S = (2.0, 10.0)
"""When a peer was lost, somebody may have come in its place. Those who lost it at the same moment do not all ask the
DHT at that moment, when answers move to the peers that are left and need the processor."""
SECOND_ANNOUNCE_S = 20.0
"""A DHT peer drops provider records that come too fast, and says nothing: the first one is written twice."""


def provider_key(model: ModelId) -> str:
    """The DHT key under which the nodes of a model are found: one for all its layers."""
    return "/p2pgrid/" + hashlib.sha256(model.encode()).hexdigest()[:32]


class Discovery:
    """Keeps `view` true for the models in `interests`, and our own advert known to the peers of that model.

    `wall` gives Unix seconds; `describe`, set by `publish`, gives our advert as it is now (its sequence number,
    expiry and addresses are filled in here).
    """

    def __init__(
        self,
        transport: Transport,
        view: SwarmView,
        settings: DiscoverySettings,
        *,
        identity: Identity,
        wall: Callable[[], float],
        rng: random.Random,
        has_link: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        """A peer with whom we have a link is not forgotten for a missed exchange: the link has heartbeats."""
        self.view = view
        self.interests: set[ModelId] = set()
        self._transport = transport
        self._settings = settings
        self._identity = identity
        self._wall = wall
        self._rng = rng
        self._has_link = has_link
        self._describe: Callable[[], Advert] | None = None
        self._own: tuple[Advert, SignedAdvert] | None = None
        self._sequence = 0
        self._published = trio.Event()
        self._look_ups: dict[ModelId, tuple[float, float]] = {}
        """When the DHT is asked next for the nodes of a model, and how long after the time before."""
        self._doubted: dict[PeerId, Contact] = {}
        self._answered_s: dict[PeerId, float] = {}
        self._early = trio.Event()

    def now_s(self) -> float:
        """Unix time."""
        return self._wall()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._transport.serve(ADVERT_PROTOCOL, self._answer)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(self._keep_refreshed)
            tasks.start_soon(self._keep_announced)
            task_status.started()

    async def publish(self, describe: Callable[[], Advert]) -> None:
        """From now on (or changed just now) this is what we say of ourselves; tell the peers that we know."""
        self._describe = describe
        self._own = None
        self.interests.add(describe().model)
        self._published.set()
        await self.refresh(describe().model)

    async def withdraw(self, last_word: Advert) -> None:
        """Tell the peers that we know that we leave, within half a second, and from now on whoever asks."""
        self._describe = lambda: last_word
        self._own = None
        with trio.move_on_after(WITHDRAW_S_MAX):
            await self.refresh(last_word.model, look_up=False)

    def renew(self) -> None:
        """What we say of ourselves has changed: whoever asks from now on hears it."""
        self._own = None

    def lost(self, peer: PeerId) -> None:
        """The link to that peer broke: forget it, soon ask whether it is there all the same, and tell others."""
        contact = self.view.forget(peer)
        if contact is not None:
            self._look_up_soon()
            self._doubt(contact)

    def _doubt(self, contact: Contact) -> None:
        self._doubted[contact.peer] = contact
        self._early.set()

    async def refresh(self, model: ModelId, *, look_up: bool = True, peers_max: int | None = None) -> None:
        """One round: providers from the DHT, then an exchange of adverts with some of them and of those known.

        With `peers_max` peers at most (None = as the settings say), and those besides of whom it was said that
        they are lost.
        """
        self.view.expire(self._wall())
        now = trio.current_time()
        self._answered_s = {peer: at for peer, at in self._answered_s.items() if now - at < DOUBT_S}
        contacts = {a.peer: Contact(a.peer, a.addresses) for a in self.view.adverts(model)}
        due = now >= self._look_ups.get(model, (now, 0.0))[0]
        if look_up and (due or not contacts):  # whoever knows nobody hears no gossip
            found = {provider.peer: provider for provider in await self._transport.find_providers(provider_key(model))}
            self._looked_up(model, bool(found.keys() - contacts.keys() - {self._transport.peer}))
            contacts = {**found, **contacts}
        contacts.pop(self._transport.peer, None)
        chosen = [self._doubted[peer] for peer in sorted(self._doubted)]
        for contact in chosen:
            contacts.pop(contact.peer, None)
        self._doubted.clear()
        others = sorted(contacts.values(), key=lambda c: c.peer)
        chosen += self._rng.sample(others, min(peers_max or self._settings.peers_per_round, len(others)))
        async with trio.open_nursery() as tasks:
            for contact in chosen:
                tasks.start_soon(self._exchange, contact, model)

    async def wait_until(self, model: ModelId, found: Callable[[], bool], deadline_s: float) -> bool:
        """Refresh eagerly until `found()`; False when that has not come true within `deadline_s`."""
        with trio.move_on_after(deadline_s):
            while True:
                if found():
                    return True
                self._look_ups.pop(model, None)
                await self.refresh(model)
                if found():
                    return True
                await trio.sleep(self._settings.refresh_eager_s)
        return found()

    def own_advert(self) -> tuple[Advert, SignedAdvert] | None:
        """Our advert, signed anew every `advert_renew_s` and when it was published anew."""
        if self._describe is None:
            return None
        now = self._wall()
        renew_at = now + self._settings.advert_ttl_s - self._settings.advert_renew_s
        if self._own is None or self._own[0].expires_at_s < renew_at:
            # Milliseconds of the wall clock, so that numbers rise across restarts too.
            self._sequence = max(self._sequence + 1, int(now * 1000))
            advert = msgspec.structs.replace(
                self._describe(),
                peer=self._identity.peer,
                addresses=self._transport.addresses[:ADDRESSES_MAX],
                sequence=self._sequence,
                expires_at_s=now + self._settings.advert_ttl_s,
            )
            self._own = advert, self._identity.sign_advert(advert)
        return self._own

    def _looked_up(self, model: ModelId, news: bool) -> None:
        """A look-up takes many streams: while it tells no news it is done ever less often; gossip does the rest."""
        refresh_s = self._settings.refresh_s
        pause_s = refresh_s if news else min(2 * self._look_ups.get(model, (0.0, refresh_s / 2))[1], LOOK_UP_S_MAX)
        self._look_ups[model] = trio.current_time() + pause_s, pause_s

    def _look_up_soon(self) -> None:
        soon_s = trio.current_time() + self._rng.uniform(*LOOK_UP_AFTER_LOSS_S)
        for model, (due_s, _) in self._look_ups.items():
            self._look_ups[model] = min(due_s, soon_s), self._settings.refresh_s

    async def _keep_refreshed(self) -> None:
        early_rounds = 0
        due_s = -math.inf
        while True:
            ordinary = trio.current_time() >= due_s  # which early ones, however many there are, must not put off
            if ordinary:
                due_s = trio.current_time() + self._settings.refresh_s * self._rng.uniform(0.8, 1.2)
            for model in sorted(self.interests):
                await self.refresh(model, look_up=ordinary, peers_max=None if ordinary else EARLY_PEERS)
            early_rounds = max(early_rounds - 1, 0)
            with trio.move_on_at(due_s):
                if not early_rounds:
                    await self._early.wait()
                await trio.sleep(self._rng.uniform(*EARLY_PAUSE_S))
            if self._early.is_set():
                early_rounds, self._early = EARLY_ROUNDS, trio.Event()

    async def _keep_announced(self) -> None:
        await self._published.wait()
        pause_s = SECOND_ANNOUNCE_S
        while True:
            if self._describe is not None and self._describe().state != "draining":
                await self._transport.announce(provider_key(self._describe().model))
            await trio.sleep(pause_s * self._rng.uniform(0.8, 1.2))
            pause_s = self._settings.announce_every_s

    async def _exchange(self, contact: Contact, model: ModelId) -> None:
        own = self.own_advert()
        known = self.view.tags(model, ADVERTS_PER_MESSAGE_MAX)
        mine = () if own is None else (own[1],)
        request = Exchange(model=model, mine=mine, known=known, lost=self.view.lost(LOST_MAX))
        try:
            reply: Adverts = await ask(
                self._transport, contact, ADVERT_PROTOCOL, request, Adverts, deadline_s=self._settings.exchange_s_max
            )
            self._take(contact.peer, reply.adverts, reply.lost)
        except PeerError as error:
            log.debug("no adverts from peer", peer=contact.peer, error=str(error))
            gone = isinstance(error, PeerMisbehaved) or not self._has_link(contact.peer)
            if gone and self.view.forget(contact.peer) is not None:
                self._early.set()

    async def _answer(self, stream: ByteStream) -> None:
        async def handle(request: Exchange) -> Adverts:
            self._take(stream.peer, request.mine, request.lost)
            model = ModelId(request.model) if request.model else None
            own = self.own_advert()
            mine = () if own is None or model not in (None, own[0].model) else (own[1],)
            known = {request.known[at : at + KNOWN_TAG_BYTES] for at in range(0, len(request.known), KNOWN_TAG_BYTES)}
            news = (*mine, *self.view.signed(model, known))
            return Adverts(news[:ADVERTS_PER_MESSAGE_MAX], self.view.lost(LOST_MAX))

        await answer(stream, Exchange, handle, deadline_s=self._settings.exchange_s_max)

    def _take(self, bringer: PeerId, adverts: tuple[SignedAdvert, ...], lost: tuple[Lost, ...]) -> None:
        """Into the view with those that are well signed; one bad one makes its bringer a liar, none of it counts.

        Whom the bringer has `lost` we ask ourselves in the next round.
        """
        opened = [(open_advert(signed), signed) for signed in adverts if not self.view.knows(signed)]
        now = self._wall()
        self.view.heard(bringer)
        self._answered_s[bringer] = trio.current_time()
        for advert, signed in opened:
            if advert.peer != self._transport.peer:
                self.view.add(advert, signed, now)
        for each in lost:
            contact = self.view.doubted(each)
            if contact is not None and not self._is_well(each.peer):
                self._doubt(contact)

    def _is_well(self, peer: PeerId) -> bool:
        return self._has_link(peer) or trio.current_time() - self._answered_s.get(peer, -math.inf) < DOUBT_S
