"""What this node knows of the others: the newest advert of each, forgotten when it expires or falls silent."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from p2pgrid.ids import ModelId, PeerId, Span
from p2pgrid.wire.adverts import KNOWN_TAG_BYTES, Advert, Lost, SignedAdvert
from p2pgrid.wire.messages import Contact

ENTRIES_MAX = 20_000
TTL_S_MAX = 600.0
"""An advert that claims to hold for longer is not believed: its peer may be gone for most of that time."""

QUEUE_NEWS_MS = 5.0
"""A queue that has changed by this and by half is news."""
CANARY_NEWS_S = 10.0
TOKENS_NEWS_PER_S = 1.0
"""Tokens a second that have changed by this and by a quarter are news."""

Key = tuple[PeerId, ModelId]


@dataclass(frozen=True)
class Entry:
    advert: Advert
    signed: SignedAdvert


class SwarmView:
    """A table of adverts by peer and model. Pure: the caller checks signatures and brings the time."""

    def __init__(self) -> None:
        self.changes = 0
        """Rises whenever somebody comes, goes, or says something else of its state or its layers."""
        self._entries: dict[Key, Entry] = {}
        self._seen: set[SignedAdvert] = set()
        self._silent: dict[Key, tuple[int, float]] = {}

    def add(self, advert: Advert, signed: SignedAdvert, now_s: float) -> bool:
        """Take in an advert; True when it is news.

        Not taken: an expired one, one that claims to hold for too long, one older than what is known, and one
        of a peer that has been silent since, unless it was signed later.
        """
        key = (advert.peer, advert.model)
        if not now_s < advert.expires_at_s <= now_s + TTL_S_MAX:
            return False
        known = self._entries.get(key)
        if known is not None and known.advert.sequence >= advert.sequence:
            return False
        if key in self._silent and self._silent[key][0] >= advert.sequence:
            return False
        if known is None and len(self._entries) >= ENTRIES_MAX:
            return False
        self._silent.pop(key, None)
        if known is not None:
            self._seen.discard(known.signed)
        if known is None or _place(known.advert) != _place(advert):
            self.changes += 1
        self._entries[key] = Entry(advert, signed)
        self._seen.add(signed)
        return True

    def knows(self, signed: SignedAdvert) -> bool:
        """Whether exactly this advert is in the table, so that its signature need not be checked again."""
        return signed in self._seen

    def forget(self, peer: PeerId) -> Contact | None:
        """The peer does not answer: drop it until it is heard again or signs something newer.

        Where it was to be found, if it was known.
        """
        contact = None
        for key in [key for key in self._entries if key[0] == peer]:
            gone = self._drop(key).advert
            self._silent[key] = (gone.sequence, gone.expires_at_s)
            contact = Contact(peer, gone.addresses)
        return contact

    def heard(self, peer: PeerId) -> None:
        """The peer itself has spoken to us: what others tell of it counts again."""
        for key in [key for key in self._silent if key[0] == peer]:
            del self._silent[key]

    def lost(self, limit: int) -> tuple[Lost, ...]:
        """At most `limit` of those who fell silent, the latest ones."""
        return tuple(Lost(key[0], sequence) for key, (sequence, _) in [*self._silent.items()][-limit:])

    def doubted(self, lost: Lost) -> Contact | None:
        """Where to find a peer that somebody lost, if nothing newer is known of it."""
        known = [entry.advert for key, entry in self._entries.items() if key[0] == lost.peer]
        if not known or max(advert.sequence for advert in known) > lost.sequence:
            return None
        return Contact(lost.peer, known[0].addresses)

    def expire(self, now_s: float) -> None:
        """Drop what no longer holds."""
        for key in [k for k, e in self._entries.items() if e.advert.expires_at_s <= now_s]:
            self._drop(key)
        self._silent = {k: s for k, s in self._silent.items() if s[1] > now_s}

    def _drop(self, key: Key) -> Entry:
        self.changes += 1
        entry = self._entries.pop(key)
        self._seen.discard(entry.signed)
        return entry

    def adverts(self, model: ModelId | None = None, *states: str) -> list[Advert]:
        """Adverts of `model` (all models without one) in one of `states` (any without), in order of peer id."""
        found = (entry.advert for _, entry in sorted(self._entries.items()))
        return [a for a in found if (model is None or a.model == model) and (not states or a.state in states)]

    def signed(self, model: ModelId | None, known: Collection[bytes] = ()) -> list[SignedAdvert]:
        """Adverts to pass on, those that hold longest first, and none whose tag is `known`."""
        entries = [e for key, e in self._entries.items() if model is None or key[1] == model]
        entries = [e for e in entries if e.signed.signature[:KNOWN_TAG_BYTES] not in known]
        entries.sort(key=lambda e: (-e.advert.expires_at_s, e.advert.peer))
        return [e.signed for e in entries]

    def tags(self, model: ModelId | None, limit: int) -> bytes:
        """The tags of at most `limit` adverts that nobody need send us."""
        found = (e.signed.signature for key, e in self._entries.items() if model is None or key[1] == model)
        return b"".join(signature[:KNOWN_TAG_BYTES] for signature in islice(found, limit))


def worth_telling(told: Advert, now: Advert) -> bool:
    """Whether a node's advert, made at one time and now, differs in what others decide by or like to see."""
    return (
        (told.sessions_free == 0) != (now.sessions_free == 0)
        or abs(told.queue_ms - now.queue_ms) > QUEUE_NEWS_MS + told.queue_ms / 2
        or told.delays_ms.keys() != now.delays_ms.keys()
        or now.canary_at_s > told.canary_at_s + CANARY_NEWS_S
        or told.sessions_open != now.sessions_open
        or abs(told.tokens_per_s - now.tokens_per_s) > TOKENS_NEWS_PER_S + told.tokens_per_s / 4
    )


def _place(advert: Advert) -> tuple[str, Span | None, Span | None]:
    return advert.state, advert.span, advert.moving_to


def replicas(spans: Iterable[Span], layers: int) -> list[int]:
    """How many of `spans` hold each layer, `[layers]`."""
    counts = [0] * layers
    for span in spans:
        for layer in range(span.start, min(span.stop, layers)):
            counts[layer] += 1
    return counts


def runs(counts: Sequence[int], value: int) -> list[Span]:
    """The maximal ranges of layers whose count is `value`."""
    found: list[Span] = []
    start: int | None = None
    for layer, count in enumerate([*counts, -1]):
        if count == value and start is None:
            start = layer
        elif count != value and start is not None:
            found.append(Span(start, layer))
            start = None
    return found


def missing_layers(spans: Iterable[Span], layers: int) -> list[Span]:
    """The ranges of layers that nobody holds."""
    return runs(replicas(spans, layers), 0)
