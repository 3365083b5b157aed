"""Speculative decoding without a second model: what stage 0 sends ahead, guessed from the session's own text.

Prompt lookup (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): what followed an earlier occurrence
of the last few tokens will probably follow again. A draft is an ordinary step of one position, so the answer is the
same bit for bit; docs/decisions/0014 says why. What it buys is time on the way: several steps are on their way round
the stages at once.
"""

from collections.abc import Sequence

DRAFT_MAX = 16
MARGIN = 3
"""A draft's expected saving must be so many times its computing: that is other sessions' and the owner's. A round of
several sessions at stages of one machine takes up to twice their computing, and drafts would only add to it."""
MATCH_MIN = 2
MATCH_MAX = 8
"""Tokens that an earlier place must share with the end of the text; a longer match says no more."""
LOOKUPS_MAX = 16
"""Earlier places that are compared, the latest first."""
ACCEPTANCE = 0.6
"""Taken for the share of drafts that come true before any was seen."""
ACCEPTANCE_WEIGHT = 0.3
PROBE_EVERY = 32
"""Tokens after which one draft is tried again where drafts did not pay."""


class Text:
    """The tokens so far, and where each pair of them stood before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._latest: dict[tuple[int, int], int] = {}
        """Two tokens → the position behind their latest occurrence that something follows."""
        self._earlier: list[int] = []
        """Each position → the one before it that stands behind the same two tokens, or -1."""

    def append(self, token: int) -> None:
        at = len(self.tokens)
        pair = self._pair_before(at)
        self._earlier.append(-1 if pair is None else self._latest.get(pair, -1))
        if pair is not None:
            self._latest[pair] = at
        self.tokens.append(token)

    def truncate(self, length: int) -> None:
        """As if what stands from `length` on had never been appended."""
        while len(self.tokens) > length:
            self.tokens.pop()
            earlier = self._earlier.pop()
            pair = self._pair_before(len(self.tokens))
            if earlier >= 0 and pair is not None:
                self._latest[pair] = earlier
            elif pair is not None:
                del self._latest[pair]

    def lookup(self) -> int | None:
        """The position behind the longest earlier match of the text's end; of equally long ones the latest."""
        tokens, end = self.tokens, len(self.tokens)
        pair = self._pair_before(end)
        at = -1 if pair is None else self._latest.get(pair, -1)
        best, best_length = None, 0
        for _ in range(LOOKUPS_MAX):
            if at < 0 or best_length == MATCH_MAX:
                break
            length = MATCH_MIN
            while length < min(MATCH_MAX, at) and tokens[at - length - 1] == tokens[end - length - 1]:
                length += 1
            if length > best_length:
                best, best_length = at, length
            at = self._earlier[at]
        return best

    def _pair_before(self, at: int) -> tuple[int, int] | None:
        return (self.tokens[at - 2], self.tokens[at - 1]) if at >= MATCH_MIN else None


class Drafter:
    """Of one session at stage 0 of a route of `hops`. Times are seconds on any clock that only goes forward."""

    def __init__(self, hops: int, draft_max: int = DRAFT_MAX) -> None:
        self._hops = hops
        self._draft_max = draft_max
        self._text = Text()
        """What is certain; drafts come behind it."""
        self._flight: list[int] = []
        """Drafts under way, for the positions behind the text."""
        self._source = 0
        """Where the next draft is copied from, in text and flight taken together."""
        self._sent_at: dict[int, float] = {}
        self._round_s: float | None = None
        self._compute_s: float | None = None
        self._acceptance = ACCEPTANCE
        self._probed_at = 0

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────

    def saw(self, position: int, tokens: Sequence[int]) -> None:
        """A real step: the text from `position` on is `tokens`, and drafts in flight are void.

        A step that lacks what comes before it is refused by the stage, and tells nothing here.
        """
        self.recall()
        if position > len(self._text.tokens):
            return
        self._text.truncate(position)
        for token in tokens:
            self._text.append(token)

    def recall(self) -> None:
        """What is under way will not come back."""
        self._flight.clear()
        self._sent_at.clear()

    def fed(self, position: int, token: int, now: float) -> bool:
        """The token for `position` was drawn. True when a draft of it is under way: its step must not run again.

        When False, what was under way is void, and the caller runs a real step.
        """
        sent_at = self._sent_at.pop(position - 1, None)
        if sent_at is not None:
            self._round_s = _steadied(self._round_s, now - sent_at)
        if self._flight and position == len(self._text.tokens):
            came_true = self._flight[0] == token
            self._acceptance += ACCEPTANCE_WEIGHT * (came_true - self._acceptance)
            if came_true:
                self._text.append(self._flight.pop(0))
                return True
        self.saw(position, (token,))
        return False

    def sent(self, position: int, now: float, compute_s: float) -> None:
        """A step of one position, real or drafted, has left; its computing took `compute_s` here."""
        self._sent_at[position] = now
        self._compute_s = _steadied(self._compute_s, compute_s)

    # ── what to do ───────────────────────────────────────────────────────────────────────────────────────

    def propose(self, until: int) -> list[tuple[int, int]]:
        """Positions below `until` and their guessed tokens, to be sent now behind what is under way."""
        most = self._in_flight_max()
        if most <= len(self._flight):
            return []
        if not self._flight:
            source = self._text.lookup()
            if source is None:
                return []
            self._source = source
        length = len(self._text.tokens)
        proposed: list[tuple[int, int]] = []
        while len(self._flight) < most and (position := length + len(self._flight)) < until:
            copied = self._source - length
            token = self._text.tokens[self._source] if copied < 0 else self._flight[copied]
            self._source += 1
            self._flight.append(token)
            proposed.append((position, token))
        if proposed:
            self._probed_at = length
        return proposed

    def _in_flight_max(self) -> int:
        """How many drafts may be under way.

        Number i in the chain comes true with probability a**i and saves a round R then; it costs its computing c at
        each stage: worth it while a**i * R > MARGIN * hops * c. More than R / c would delay what comes behind them.
        """
        if self._round_s is None or self._compute_s is None:
            return 0
        cost_s = MARGIN * self._hops * self._compute_s
        if self._round_s <= cost_s:
            return 0
        most = self._draft_max
        if self._compute_s > 0:
            most = min(most, int(self._round_s / self._compute_s))
        paying = 0
        gain_s = self._acceptance * self._round_s
        while paying < most and gain_s > cost_s:
            paying += 1
            gain_s *= self._acceptance
        if not paying and len(self._text.tokens) - self._probed_at >= PROBE_EVERY:
            return 1
        return paying


def _steadied(average_s: float | None, sample_s: float) -> float:
    """A moving average that falls faster than it rises, since a stall says little about what comes next."""
    if not average_s:
        return sample_s
    if sample_s < average_s:
        return average_s + 0.5 * (sample_s - average_s)
    return average_s + 0.2 * (min(sample_s, 2 * average_s) - average_s)
