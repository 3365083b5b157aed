"""Finding peers and being found: provider records in the DHT, signed adverts between peers, a local view."""

import hashlib
import random
from collections.abc import Callable

import msgspec
import structlog
import trio

from p2pgrid.core.swarm_view import SwarmView
from p2pgrid.errors import PeerError
from p2pgrid.ids import ModelId
from p2pgrid.net.exchange import answer, ask
from p2pgrid.net.transport import ByteStream, Transport
from p2pgrid.settings import DiscoverySettings
from p2pgrid.wire.fields import ADDRESSES_MAX
from p2pgrid.wire.messages import (
    ADVERT_PROTOCOL,
    ADVERTS_PER_MESSAGE_MAX,
    Advert,
    Adverts,
    Contact,
    Exchange,
    SignedAdvert,
)
from p2pgrid.wire.signing import Identity, open_advert

log = structlog.get_logger()

WITHDRAW_S_MAX = 0.5
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
    ) -> None:
        self.view = view
        self.interests: set[ModelId] = set()
        self._transport = transport
        self._settings = settings
        self._identity = identity
        self._wall = wall
        self._rng = rng
        self._describe: Callable[[], Advert] | None = None
        self._own: tuple[Advert, SignedAdvert] | None = None
        self._sequence = 0
        self._published = trio.Event()
        self._looked_up_s: dict[ModelId, float] = {}

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

    async def refresh(self, model: ModelId, *, look_up: bool = True) -> None:
        """One round: providers from the DHT, then an exchange of adverts with some of them and of those known."""
        self.view.expire(self._wall())
        contacts = {a.peer: Contact(a.peer, a.addresses) for a in self.view.adverts(model)}
        if look_up and self._due_for_look_up(model, len(contacts)):
            for provider in await self._transport.find_providers(provider_key(model)):
                contacts.setdefault(provider.peer, provider)
        contacts.pop(self._transport.peer, None)
        chosen = sorted(contacts.values(), key=lambda c: c.peer)
        if len(chosen) > self._settings.peers_per_round:
            chosen = self._rng.sample(chosen, self._settings.peers_per_round)
        async with trio.open_nursery() as tasks:
            for contact in chosen:
                tasks.start_soon(self._exchange, contact, model)

    async def wait_until(self, model: ModelId, found: Callable[[], bool], deadline_s: float) -> bool:
        """Refresh eagerly until `found()`; False when that has not come true within `deadline_s`."""
        with trio.move_on_after(deadline_s):
            while True:
                if found():
                    return True
                self._looked_up_s.pop(model, None)
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

    def _due_for_look_up(self, model: ModelId, known: int) -> bool:
        """The DHT is asked when few peers are known, and now and then besides; gossip does the rest."""
        last = self._looked_up_s.get(model)
        now = trio.current_time()
        if known >= 3 and last is not None and now - last < 6 * self._settings.refresh_s:
            return False
        self._looked_up_s[model] = now
        return True

    async def _keep_refreshed(self) -> None:
        while True:
            for model in sorted(self.interests):
                await self.refresh(model)
            await trio.sleep(self._settings.refresh_s * self._rng.uniform(0.8, 1.2))

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
        request = Exchange(model=model, mine=() if own is None else (own[1],))
        try:
            reply: Adverts = await ask(
                self._transport, contact, ADVERT_PROTOCOL, request, Adverts, deadline_s=self._settings.exchange_s_max
            )
            self._take(reply.adverts)
        except PeerError as error:
            log.debug("no adverts from peer", peer=contact.peer, error=str(error))
            self.view.forget(contact.peer)

    async def _answer(self, stream: ByteStream) -> None:
        async def handle(request: Exchange) -> Adverts:
            self._take(request.mine)
            model = ModelId(request.model) if request.model else None
            own = self.own_advert()
            mine = () if own is None or model not in (None, own[0].model) else (own[1],)
            return Adverts((*mine, *self.view.signed(model, ADVERTS_PER_MESSAGE_MAX - len(mine))))

        await answer(stream, Exchange, handle, deadline_s=self._settings.exchange_s_max)

    def _take(self, adverts: tuple[SignedAdvert, ...]) -> None:
        """Into the view with those that are well signed; one bad one makes its bringer a liar, none of it counts."""
        opened = [(open_advert(signed), signed) for signed in adverts if not self.view.knows(signed)]
        now = self._wall()
        for advert, signed in opened:
            if advert.peer != self._transport.peer:
                self.view.add(advert, signed, now)
