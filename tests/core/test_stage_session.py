from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.stage_session import Ignore, Refuse, Run, StageSession, check_route
from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import ModelId, PeerId, SessionId, Span
from p2pgrid.wire.messages import Hop, Open

bounded = settings(max_examples=100, deadline=None)
CLIENT = PeerId("client")
CONTEXT = 24


def peer(hop: int) -> PeerId:
    return PeerId(f"peer{hop}")


def opening(hop: int = 0, *, edges: tuple[int, ...] = (0, 3, 7, 9), epoch: int = 2) -> Open:
    """An Open to `hop` of a route whose stages end at `edges`."""
    route = tuple(Hop(peer(i), Span(a, b)) for i, (a, b) in enumerate(pairwise(edges)))
    return Open(SessionId("0" * 32), epoch, ModelId("0" * 64), route, hop, stop_tokens=(9,))


class StageSessionMachine(RuleBasedStateMachine):
    """The machine beside a plain list of what stands at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = StageSession(CLIENT, opening(), CONTEXT)
        self.row: list[int] = []
        self.alone: list[bool] = []
        """For each position, whether it was computed in a step of its own."""
        self.written = 0

    def _write(self, position: int, count: int) -> None:
        self.written += 1
        tokens = [self.written] * count
        assert self.machine.on_step(2, position, tokens) == Run(position)
        self.machine.computed(position, tokens)
        self.row[position:] = tokens
        self.alone[position:] = [count == 1] * count

    @rule(count=st.integers(1, 8))
    def append(self, count: int) -> None:
        if len(self.row) + count <= CONTEXT:
            self._write(len(self.row), count)

    @rule(data=st.data(), count=st.integers(1, 8))
    def overwrite(self, data: st.DataObject, count: int) -> None:
        position = data.draw(st.integers(0, len(self.row)))
        if position + count <= CONTEXT:
            self._write(position, count)

    @rule(gap=st.integers(1, 8), count=st.integers(1, 8))
    def leave_a_gap(self, gap: int, count: int) -> None:
        position = len(self.row) + gap
        if position + count <= CONTEXT:
            assert self.machine.on_step(2, position, [0] * count) == Refuse(len(self.row))

    @rule(epoch=st.sampled_from([0, 1, 3]), position=st.integers(0, 2 * CONTEXT), count=st.integers(1, 8))
    def come_from_another_epoch(self, epoch: int, position: int, count: int) -> None:
        assert self.machine.on_step(epoch, position, [0] * count) == Ignore()

    @rule(position=st.integers(0, 2 * CONTEXT), beyond=st.integers(1, 8))
    def go_past_the_context(self, position: int, beyond: int) -> None:
        count = max(1, CONTEXT + beyond - position)
        with pytest.raises(PeerMisbehaved, match=f"this session has room for {CONTEXT}"):
            self.machine.on_step(2, max(position, CONTEXT), [0] * count)
        with pytest.raises(PeerMisbehaved):
            self.machine.on_step(2, min(position, CONTEXT), [0] * (CONTEXT + beyond - min(position, CONTEXT)))

    @invariant()
    def the_length_is_that_of_the_row(self) -> None:
        assert self.machine.length == len(self.row) <= CONTEXT

    @invariant()
    def what_may_be_shared_was_prefilled(self) -> None:
        shared = len(self.machine.prefilled)
        assert self.machine.prefilled == self.row[:shared]
        assert not any(self.alone[:shared])
        assert shared == len(self.row) or self.alone[shared]


TestStageSession = StageSessionMachine.TestCase
TestStageSession.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_step_that_comes_twice_leaves_the_row_as_it_was() -> None:
    machine = StageSession(CLIENT, opening(), CONTEXT)
    for _ in range(2):
        assert machine.on_step(2, 0, [1] * 5) == Run(0)
        machine.computed(0, [1] * 5)
    assert machine.length == 5


def test_the_context_can_be_filled_to_its_last_position() -> None:
    machine = StageSession(CLIENT, opening(), CONTEXT)
    assert machine.on_step(2, 0, [1] * CONTEXT) == Run(0)


def test_a_session_has_the_room_that_it_asked_for_and_no_more() -> None:
    machine = StageSession(CLIENT, msgspec.structs.replace(opening(), positions=8), CONTEXT)
    assert machine.on_step(2, 0, [1] * 8) == Run(0)
    with pytest.raises(PeerMisbehaved, match="room for 8"):
        machine.on_step(2, 0, [1] * 9)
    assert StageSession(CLIENT, msgspec.structs.replace(opening(), positions=99), CONTEXT).context_max == CONTEXT


def test_the_last_stage_runs_a_draft_only_if_it_drew_that_token_there() -> None:
    last = StageSession(CLIENT, opening(2), CONTEXT)
    last.computed(0, [1, 2, 3])
    assert last.on_step(2, 3, [5], draft=True) == Ignore(), "nothing was drawn yet"
    assert last.feeds_on(3, 5, until=20)
    assert last.on_step(2, 3, [6], draft=True) == Ignore()
    assert last.on_step(2, 4, [5], draft=True) == Ignore()
    assert last.on_step(2, 2, [5], draft=True) == Ignore()
    assert last.on_step(2, 3, [5], draft=True) == Run(3)
    last.computed(3, [5])
    assert last.on_step(2, 3, [5], draft=True) == Ignore(), "a draft that comes twice is old"


@pytest.mark.parametrize(("token", "until"), [(9, 20), (5, 3)], ids=["a stop token", "past the grant"])
def test_the_last_stage_runs_no_draft_behind_the_end(token: int, until: int) -> None:
    last = StageSession(CLIENT, opening(2), CONTEXT)
    last.computed(0, [1, 2, 3])
    assert not last.feeds_on(3, token, until)
    assert last.on_step(2, 3, [token], draft=True) == Ignore()


def test_a_stage_before_the_last_runs_drafts_as_they_come_and_none_that_leaves_a_gap() -> None:
    middle = StageSession(CLIENT, opening(1), CONTEXT)
    middle.computed(0, [1, 2, 3])
    assert middle.on_step(2, 3, [5], draft=True) == Run(3)
    assert middle.on_step(2, 5, [5], draft=True) == Ignore()


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_only_the_first_of_several_stages_drafts_and_not_where_it_is_unwanted(hop: int) -> None:
    assert (StageSession(CLIENT, opening(hop), CONTEXT).drafter is not None) == (hop == 0)
    for off in ({"exact": True}, {"relayed": True}):
        assert StageSession(CLIENT, msgspec.structs.replace(opening(hop), **off), CONTEXT).drafter is None
    assert StageSession(CLIENT, opening(edges=(0, 9)), CONTEXT).drafter is None


def test_steps_come_from_the_stage_before_and_at_stage_0_from_the_client_and_the_last_stage() -> None:
    may_send = [
        {
            sender
            for sender in (CLIENT, peer(0), peer(1), peer(2), PeerId("stranger"))
            if StageSession(CLIENT, opening(hop), CONTEXT).may_send(sender)
        }
        for hop in range(3)
    ]
    assert may_send == [{CLIENT, peer(2)}, {peer(0)}, {peer(1)}]


def test_results_go_to_the_next_stage_and_from_the_last_one_to_the_first() -> None:
    sessions = [StageSession(CLIENT, opening(hop), CONTEXT) for hop in range(3)]
    assert [s.next_hop.peer for s in sessions] == [peer(1), peer(2), peer(0)]
    assert [s.is_last for s in sessions] == [False, False, True]


def test_a_stage_alone_feeds_itself() -> None:
    alone = StageSession(CLIENT, opening(edges=(0, 9)), CONTEXT)
    assert alone.is_last
    assert alone.next_hop.peer == peer(0)
    assert alone.may_send(peer(0))
    assert alone.may_send(CLIENT)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 20))
@bounded
def test_a_token_is_fed_on_below_the_grant_unless_it_ends_the_answer(position: int, until: int, token: int) -> None:
    machine = StageSession(CLIENT, opening(2), CONTEXT)
    assert machine.feeds_on(position, token, until) == (position < until and token != 9)


routes = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(lambda cuts: (0, *sorted(cuts)))


@given(routes, st.data())
@bounded
def test_a_route_that_covers_the_layers_in_order_is_accepted_at_each_hop(
    edges: tuple[int, ...], data: st.DataObject
) -> None:
    hop = data.draw(st.integers(0, len(edges) - 2))
    check_route(opening(hop, edges=edges), peer(hop), Span(edges[hop], edges[hop + 1]), edges[-1])


@given(routes, st.data())
@bounded
def test_a_route_with_a_gap_or_an_overlap_or_another_length_is_refused(
    edges: tuple[int, ...], data: st.DataObject
) -> None:
    hop = data.draw(st.integers(0, len(edges) - 2))
    good = opening(hop, edges=edges)
    wrong = data.draw(st.integers(0, len(edges) - 2))
    start, stop = data.draw(st.tuples(st.integers(0, 40), st.integers(1, 41)).filter(lambda s: s[0] < s[1]))
    route = list(good.route)
    route[wrong] = Hop(peer(wrong), Span(start, stop))
    bad = msgspec.structs.replace(good, route=tuple(route))
    if bad == good:
        return
    own = bad.route[hop]
    with pytest.raises(PeerMisbehaved, match="does not cover layers"):
        check_route(bad, own.peer, own.span, edges[-1])


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([(0, 3), (4, 9)], "a gap"),
        ([(0, 4), (3, 9)], "an overlap"),
        ([(1, 3), (3, 9)], "no first layer"),
        ([(0, 3), (3, 8)], "no last layer"),
        ([(0, 3), (3, 10)], "more layers than the model"),
        ([(3, 9), (0, 3)], "the wrong order"),
        ([(0, 3), (0, 3), (3, 9)], "a stage twice"),
    ],
)
def test_a_route_that_does_not_join_up_is_refused(spans: list[tuple[int, int]], why: str) -> None:
    route = tuple(Hop(peer(i), Span(*span)) for i, span in enumerate(spans))
    with pytest.raises(PeerMisbehaved, match="does not cover layers 0:9 one after another"):
        check_route(msgspec.structs.replace(opening(), route=route), peer(0), route[0].span, 9)


def test_a_route_for_another_peer_or_span_or_hop_is_refused() -> None:
    check_route(opening(1), peer(1), Span(3, 7), 9)
    with pytest.raises(PeerMisbehaved, match="expects layers 3:7 on peer1; here are layers 3:7"):
        check_route(opening(1), peer(2), Span(3, 7), 9)
    with pytest.raises(PeerMisbehaved, match="expects layers 3:7 on peer1; here are layers 3:8"):
        check_route(opening(1), peer(1), Span(3, 8), 9)
    with pytest.raises(PeerMisbehaved, match="expects layers 7:9 on peer2"):
        check_route(opening(2), peer(1), Span(3, 7), 9)
    with pytest.raises(PeerMisbehaved, match="hop 3 of a route of 3"):
        check_route(opening(3), peer(1), Span(3, 7), 9)
