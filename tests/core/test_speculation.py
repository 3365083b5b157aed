import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.speculation import DRAFT_MAX, LOOKUPS_MAX, MATCH_MAX, MATCH_MIN, PROBE_EVERY, Drafter, Text
from p2pgrid.core.stage_session import Ignore, Run, StageSession
from p2pgrid.ids import ModelId, PeerId, SessionId, Span
from p2pgrid.wire.messages import Hop, Open

STALL_S = 0.5
WRONG = 10**6
"""What the last stage draws when any stage holds another text than the true one."""


# ── a ring of stages, on a virtual clock ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sent:
    """A step of one position under way; `sound` while every stage so far held the true text before it."""

    position: int
    token: int
    draft: bool
    sound: bool = True


class RingStage:
    """One step after another, each for `compute_s`, in the order in which they came. The real session machine decides
    which of them run."""

    def __init__(self, ring: "Ring", hop: int) -> None:
        route = tuple(Hop(PeerId(f"peer{i}"), Span(i, i + 1)) for i in range(ring.hops))
        opening = Open(SessionId("0" * 32), 0, ModelId("0" * 64), route, hop)
        self.machine = StageSession(PeerId("client"), opening, len(ring.truth))
        self.machine.hold(ring.truth[: ring.prompt - 1])
        self.row = list(ring.truth[: ring.prompt - 1])
        self.queue: deque[Sent] = deque()
        self.busy = False
        self._ring = ring

    def put(self, step: Sent) -> None:
        self.queue.append(step)
        self.consider()

    def consider(self) -> None:
        while self.queue and not self.busy:
            step = self.queue.popleft()
            decision = self.machine.on_step(0, step.position, [step.token], draft=step.draft)
            assert isinstance(decision, Run | Ignore), "a step that leaves a gap"
            if isinstance(decision, Run):
                self.busy = True
                self._ring.at(self._ring.now + self._ring.compute_s, lambda done=step: self._done(done))

    def _done(self, step: Sent) -> None:
        self.busy = False
        self.row[step.position :] = [step.token]
        self.machine.computed(step.position, [step.token])
        truth = self._ring.truth
        sound = step.sound and self.row == list(truth[: step.position + 1])
        self._ring.computed(self.machine.hop, Sent(step.position, step.token, step.draft, sound))
        self.consider()


@dataclass
class Ring:
    """One answer over `hops` stages, `latency_s` between neighbours: what was drawn, when, and what it took."""

    truth: Sequence[int]
    prompt: int
    hops: int
    latency_s: float
    compute_s: float
    drafter: Drafter | None
    stalls: frozenset[tuple[int, int]] = frozenset()
    """Hop and position of the messages that the network holds up for `STALL_S`."""
    now: float = 0.0
    took_s: float = 0.0
    drawn: list[int] = field(default_factory=list)
    steps: int = 0
    """Run by stage 0."""
    drafted: list[int] = field(default_factory=list)
    """Positions."""
    came_true: int = 0

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._link_free_at = [0.0] * self.hops
        self._stages = [RingStage(self, hop) for hop in range(self.hops)]
        if self.drafter is not None:
            self.drafter.saw(0, self.truth[: self.prompt - 1])

    @property
    def until(self) -> int:
        return len(self.truth) - 1

    @property
    def wasted(self) -> int:
        return len(self.drafted) - self.came_true

    def at(self, time: float, do: Callable[[], None]) -> None:
        """What is due at the same time is done in the order in which it was asked for."""
        heapq.heappush(self._events, (time, next(self._number), do))

    def run(self) -> "Ring":
        self._fed(self.prompt - 1, self.truth[self.prompt - 1])
        while self._events:
            self.now, _, do = heapq.heappop(self._events)
            do()
        return self

    def _fed(self, position: int, token: int) -> None:
        """As `StageLoop.put` treats a real step at stage 0."""
        first = self._stages[0]
        if self.drafter is not None and self.drafter.fed(position, token, self.now):
            self.came_true += 1
            self._draft()
            return
        first.queue = deque(step for step in first.queue if not (step.draft and step.position >= position))
        first.put(Sent(position, token, draft=False))

    def _draft(self) -> None:
        if self.drafter is None:
            return
        for position, token in self.drafter.propose(self.until):
            self.drafted.append(position)
            self._stages[0].put(Sent(position, token, draft=True))

    def computed(self, hop: int, step: Sent) -> None:
        if hop == 0:
            self.steps += 1
            if self.drafter is not None:
                self.drafter.sent(step.position, self.now, self.compute_s)
                self._draft()
        if hop < self.hops - 1:
            following = self._stages[hop + 1]
            self._send(hop, step.position, lambda: following.put(step))
            return
        position = step.position + 1
        assert position == self.prompt + len(self.drawn), "drawn twice, or not in order"
        token = self.truth[position] if step.sound else WRONG
        self.drawn.append(token)
        self.took_s = self.now
        if self._stages[hop].machine.feeds_on(position, token, self.until):
            self._send(hop, position, lambda: self._fed(position, token))

    def _send(self, hop: int, position: int, arrive: Callable[[], None]) -> None:
        """Over the link behind `hop`. Nothing overtakes what was sent before it."""
        stall_s = STALL_S if (hop, position) in self.stalls else 0.0
        self._link_free_at[hop] = max(self._link_free_at[hop], self.now + self.latency_s + stall_s)
        self.at(self._link_free_at[hop], arrive)


class Eager(Drafter):
    """Drafts as much as it may, whether or not it pays."""

    def _in_flight_max(self) -> int:
        return self._draft_max


def ring(
    truth: Sequence[int], drafter: Drafter | None, *, hops: int = 3, hop_ms: float = 50.0, prompt: int = 8
) -> Ring:
    return Ring(truth, prompt, hops, hop_ms / 1000, 0.004, drafter).run()


def random_text(seed: int, length: int, vocab: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(vocab) for _ in range(length)]


patches = st.tuples(st.integers(0, 60), st.integers(1, 25))
texts = st.builds(
    lambda start, copies, tail: [*_copied(start, copies), *tail],
    st.lists(st.integers(0, 5), min_size=3, max_size=40),
    st.lists(patches, max_size=6),
    st.lists(st.integers(0, 5), max_size=10),
)
"""Texts that quote themselves here and there."""


def _copied(start: list[int], copies: list[tuple[int, int]]) -> list[int]:
    text = list(start)
    for at, length in copies:
        at %= len(text)
        text += text[at : at + length]
    return text


@given(
    texts,
    st.data(),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.0005, 0.02, 0.2]),
    st.sampled_from([0.0, 0.001, 0.03]),
    st.sampled_from([Drafter, Eager]),
    st.integers(1, 20),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_drafted_the_answer_is_the_one_without_drafts(
    truth: list[int],
    data: st.DataObject,
    hops: int,
    latency_s: float,
    compute_s: float,
    make: type[Drafter],
    draft_max: int,
) -> None:
    prompt = data.draw(st.integers(1, len(truth) - 1))
    stalls = data.draw(st.frozensets(st.tuples(st.integers(0, hops - 1), st.integers(0, len(truth))), max_size=5))
    run = Ring(truth, prompt, hops, latency_s, compute_s, make(hops, draft_max), stalls).run()
    assert run.drawn == truth[prompt:]
    assert all(position < run.until for position in run.drafted)


# ── what is drafted, and when ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("period", [3, 12, 30])
def test_at_50_ms_between_stages_a_text_that_repeats_itself_takes_little_more_than_half_the_time(period: int) -> None:
    truth = (random_text(period, period, 1000) * 100)[: 4 * period + 200]
    plain = ring(truth, None, prompt=2 * period)
    drafted = ring(truth, Drafter(3), prompt=2 * period)
    assert drafted.drawn == plain.drawn
    assert drafted.took_s < plain.took_s / 1.8
    assert drafted.wasted <= 0.02 * drafted.steps


@pytest.mark.parametrize("vocab", [50, 300, 49_152])
@pytest.mark.parametrize("hop_ms", [10, 50, 200])
def test_on_a_text_that_does_not_repeat_itself_few_steps_are_drafts_for_nothing(vocab: int, hop_ms: float) -> None:
    for seed in range(5):
        truth = random_text(seed, 600, vocab)
        plain = ring(truth, None, hop_ms=hop_ms)
        drafted = ring(truth, Drafter(3), hop_ms=hop_ms)
        assert drafted.wasted <= 0.06 * plain.steps
        assert drafted.took_s <= 1.01 * plain.took_s


@pytest.mark.parametrize("hops", [2, 3, 8])
@pytest.mark.parametrize("hop_ms", [0.0, 0.3, 1.0])
def test_stages_next_to_each_other_draft_nothing(hops: int, hop_ms: float) -> None:
    assert ring([1, 2, 3] * 100, Drafter(hops), hops=hops, hop_ms=hop_ms).drafted == []


def measured(history: Sequence[int], *, round_s: float = 0.3, compute_s: float = 0.004, hops: int = 3) -> Drafter:
    """A drafter that saw `history`, whose last step came round in `round_s`."""
    drafter = Drafter(hops)
    drafter.saw(0, history[:-1])
    drafter.sent(len(history) - 2, 0.0, compute_s)
    assert not drafter.fed(len(history) - 1, history[-1], round_s)
    return drafter


def test_nothing_is_drafted_before_a_round_was_measured() -> None:
    drafter = Drafter(3)
    drafter.saw(0, [1, 2, 3] * 4)
    assert drafter.propose(100) == []
    drafter.sent(11, 0.0, 0.004)
    assert drafter.propose(100) == []
    drafter.fed(12, 1, 0.3)
    assert drafter.propose(100)[:3] == [(13, 2), (14, 3), (15, 1)]


def test_no_more_is_in_flight_than_one_round_has_steps() -> None:
    drafter = measured([1, 2, 3] * 4, round_s=0.1, compute_s=0.02, hops=1)
    in_flight = []
    for position in range(12, 80):  # all comes true
        drafter.propose(1000)
        in_flight.append(len(drafter._flight))
        drafter.fed(position, position % 3 + 1, 0.0)
    assert max(in_flight) == 5


def test_a_longer_chain_is_drafted_where_drafts_come_true_up_to_the_most() -> None:
    drafter = measured([1, 2, 3] * 4)
    first = len(drafter.propose(1000))
    assert 0 < first < DRAFT_MAX
    for position in range(12, 40):
        assert drafter.fed(position, position % 3 + 1, 0.0)
        drafter.propose(1000)
    assert len(drafter._flight) == DRAFT_MAX


def test_a_draft_that_is_wrong_voids_those_behind_it() -> None:
    drafter = measured([1, 2, 3] * 4)
    assert len(drafter.propose(100)) > 2
    assert drafter.fed(12, 1, 0.3)
    assert not drafter.fed(13, 9, 0.4)
    assert not drafter.fed(14, 3, 0.5), "it was drafted behind another text"


def test_a_real_step_from_the_client_voids_what_is_in_flight() -> None:
    drafter = measured([1, 2, 3] * 4)
    proposed = drafter.propose(100)
    drafter.saw(6, [7, 8])
    assert proposed
    assert not drafter.fed(8, proposed[0][1], 0.3)


def test_a_step_that_was_voided_measures_no_round() -> None:
    drafter = Drafter(3)
    drafter.saw(0, [1, 2, 3] * 4)
    drafter.sent(11, 0.0, 0.004)
    drafter.saw(11, [3])
    drafter.fed(12, 1, 0.3)
    assert drafter.propose(100) == []


def test_a_step_that_the_stage_will_refuse_tells_the_drafter_nothing() -> None:
    drafter = measured([1, 2, 3] * 4)
    assert drafter.propose(100)[0] == (12, 1)
    assert not drafter.fed(10**9, 5, 0.3)
    drafter.saw(10**9, [5] * 512)
    assert drafter.propose(100)[0] == (12, 1)


def test_where_drafts_do_not_come_true_one_is_tried_now_and_then_until_they_do() -> None:
    drafter = measured([1, 2, 3] * 4)
    tried = []
    for position in range(12, 412):  # the pair before is always known, what follows it never comes again
        token = position if position % 3 == 0 else position % 3
        tried.append(len(drafter.propose(1000)))
        drafter.sent(position - 1, 0.0, 0.004)
        drafter.fed(position, token, 0.3)
    rare = tried[100:]
    assert set(rare) == {0, 1}
    assert len(rare) // PROBE_EVERY - 2 <= sum(rare) <= len(rare) // PROBE_EVERY + 1
    position = 412
    while len(drafter._flight) < 4:  # now it does repeat itself
        assert position < 412 + 3 * PROBE_EVERY
        drafter.propose(1000)
        drafter.fed(position, 500 + position % 5, 0.0)
        position += 1


@pytest.mark.parametrize("stall_s", [0.5, 5.0, 500.0])
def test_one_stalled_round_does_not_start_drafts_on_a_fast_network(stall_s: float) -> None:
    drafter = measured([1, 2, 3] * 4, round_s=0.012)
    for position in range(12, 40):
        drafter.sent(position - 1, 0.0, 0.004)
        drafter.fed(position, position % 3 + 1, stall_s if position == 20 else 0.012)
        assert drafter.propose(1000) == []


# ── looking up ───────────────────────────────────────────────────────────────────────────────────────────


def model_lookup(tokens: Sequence[int]) -> int | None:
    """The same by trying everything."""

    def match(at: int) -> int:
        length = 0
        while length < min(MATCH_MAX, at) and tokens[at - length - 1] == tokens[len(tokens) - length - 1]:
            length += 1
        return length

    places = [at for at in range(len(tokens) - 1, MATCH_MIN - 1, -1) if match(at) >= MATCH_MIN][:LOOKUPS_MAX]
    return max(places, key=match, default=None)


class TextMachine(RuleBasedStateMachine):
    """Appended to and cut back, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Text()
        self.model: list[int] = []

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12))
    def append(self, tokens: list[int]) -> None:
        for token in tokens:
            self.text.append(token)
        self.model += tokens

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, len(self.model) + 2))
        self.text.truncate(length)
        del self.model[length:]

    @invariant()
    def it_finds_what_a_plain_search_finds(self) -> None:
        assert self.text.tokens == self.model
        assert self.text.lookup() == model_lookup(self.model)


TestText = TextMachine.TestCase
TestText.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
