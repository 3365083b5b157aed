"""Who fills whom after a loss, and where the client goes on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.generation import Generation, SendStep, chunks
from p2pgrid.core.recovery import CLIENT, Held, Transcript, kept_hops, left_out_by_turns, plan_feeds
from p2pgrid.ids import PeerId, Span
from p2pgrid.wire.messages import Hop

bounded = settings(max_examples=300, deadline=None)
CONTEXT = 10_000


@st.composite
def routes(draw: st.DrawFn) -> tuple[list[Held], int]:
    """What the stages of a route hold, and where the session is to go on."""
    start = draw(st.integers(0, 40))
    held = []
    for _ in range(draw(st.integers(1, 7))):
        length = draw(st.one_of(st.just(start), st.integers(0, 50)))
        held.append(Held(length, draw(st.one_of(st.just(0), st.integers(0, length)))))
    return held, start


@given(routes())
@bounded
def test_after_the_plan_every_stage_holds_all_that_comes_before_the_start(route: tuple[list[Held], int]) -> None:
    held, start = route
    lengths = [each.length for each in held]
    for feed in plan_feeds(held, start):
        assert feed.stop == start
        if feed.hop != CLIENT:
            assert held[feed.hop].length >= start, "a feeder holds everything itself"
            assert held[feed.hop].replays_from <= feed.start, "and can replay all that is lacking"
        for hop in range(feed.hop + 1, feed.through + 1):
            assert lengths[hop] >= feed.start, "a step that lacks what comes before it would be refused"
            lengths[hop] = start
    assert min(lengths) >= start


@given(routes())
@bounded
def test_segments_do_not_overlap_and_end_at_a_stage_that_lacks_something(route: tuple[list[Held], int]) -> None:
    held, start = route
    feeds = plan_feeds(held, start)
    touched = [hop for feed in feeds for hop in range(feed.hop + 1, feed.through + 1)]
    assert len(touched) == len(set(touched))
    assert all(held[feed.through].length < start for feed in feeds)
    assert len({feed.hop for feed in feeds}) == len(feeds), "each stage is told one thing"


@given(routes())
@bounded
def test_the_nearest_stage_that_can_feeds(route: tuple[list[Held], int]) -> None:
    held, start = route
    for feed in plan_feeds(held, start):
        for hop in range(feed.hop + 1, feed.through):
            lacking_from = min(held[i].length for i in range(hop + 1, feed.through + 1))
            assert held[hop].length < start or held[hop].replays_from > lacking_from


def test_a_lost_stage_is_filled_by_the_one_before_it() -> None:
    held = [Held(30, 0), Held(30, 0), Held(0, 0), Held(30, 30)]
    (feed,) = plan_feeds(held, 29)
    assert (feed.hop, feed.start, feed.stop, feed.through) == (1, 0, 29, 2)


def test_where_the_one_before_it_was_lost_too_or_sent_too_little_the_next_one_before_it_does() -> None:
    for second in (Held(0, 0), Held(30, 16)):
        (feed,) = plan_feeds([Held(30, 0), second, Held(0, 0)], 29)
        assert (feed.hop, feed.through) == (0, 2)


def test_at_worst_the_client_does() -> None:
    (feed,) = plan_feeds([Held(30, 16), Held(0, 0), Held(30, 0)], 29)
    assert (feed.hop, feed.start, feed.through) == (CLIENT, 0, 1)


def test_stages_that_all_hold_enough_are_asked_nothing() -> None:
    assert plan_feeds([Held(30, 30), Held(29, 0)], 29) == []


def test_a_stage_is_kept_with_its_peer_and_its_layers() -> None:
    a, b, c = (Hop(PeerId(name), span) for name, span in (("a", Span(0, 3)), ("b", Span(3, 6)), ("c", Span(6, 9))))
    moved = Hop(PeerId("b"), Span(6, 9))
    assert kept_hops((a, b, c), (a, Hop(PeerId("d"), Span(3, 6)), c)) == [0, 2]
    assert kept_hops((a, b, c), (a, Hop(PeerId("d"), Span(3, 6)), moved)) == [0]


# ── the transcript ───────────────────────────────────────────────────────────────────────────────────────


def generation(prompt: list[int], chunk: int, *, run_ahead: bool) -> Generation:
    return Generation(prompt, max_tokens=40, stop_tokens=(), context_max=CONTEXT, chunk=chunk, run_ahead=run_ahead)


@st.composite
def transcripts(draw: st.DrawFn) -> tuple[Transcript, list[SendStep], int]:
    """A transcript of a generation at some point, all steps as they were run, and the tokens that came."""
    prompt = list(range(100, 100 + draw(st.integers(1, 60))))
    chunk = draw(st.integers(3, 20))
    cached = draw(st.integers(0, len(prompt)))
    run_ahead = draw(st.booleans())
    machine = generation(prompt, chunk, run_ahead=run_ahead)
    transcript = Transcript(prompt, chunk)
    steps: list[SendStep] = []
    pending = machine.start(cached)
    pending = pending[: draw(st.integers(1, len(pending)))] if draw(st.booleans()) else pending
    tokens = 0
    for _ in range(draw(st.integers(0, 12))):
        for action in pending:
            if isinstance(action, SendStep):
                transcript.sent(action)
                steps.append(action)
        if steps[-1].want != "token":
            return transcript, steps, 0
        position = machine.next_position
        pending = machine.on_token(position, tokens)
        transcript.drawn(position, tokens)
        if run_ahead:
            steps.append(SendStep(position, (tokens,), "token", steps[-1].until))
        tokens += 1
    for action in pending:
        if isinstance(action, SendStep):
            transcript.sent(action)
            steps.append(action)
    return transcript, steps, tokens


def covered(steps: list[SendStep]) -> list[int]:
    """The token at each position from the first step's on."""
    row: list[int] = []
    for step in steps:
        assert step.position == steps[0].position + len(row), "one after another"
        row += step.tokens
    return row


@given(transcripts(), st.integers(0, 200))
@bounded
def test_what_is_sent_again_is_what_was_sent_cut_where_it_was_cut(
    made: tuple[Transcript, list[SendStep], int], length: int
) -> None:
    transcript, steps, tokens = made
    start = transcript.resume_at(length)
    again = transcript.since(start)
    assert again[-1] == steps[-1], "what was not answered is asked again"
    assert again[0].position == start
    begin = steps[0].position
    assert [step for step in again if step.position >= begin] == [s for s in steps if s.position >= start]
    if tokens:
        assert again == [steps[-1]], "one step, that of the last token that came"
    else:
        assert start <= max(length, 0)
        assert all(len(step.tokens) > 1 for step in again[:-1] if step.position + len(step.tokens) > 1) or begin == 1


@given(transcripts(), st.data())
@bounded
def test_what_fills_a_stage_covers_all_that_it_lacks_and_asks_for_nothing(
    made: tuple[Transcript, list[SendStep], int], data: st.DataObject
) -> None:
    transcript, steps, _ = made
    start = transcript.resume_at(data.draw(st.integers(0, 200)))
    lacking_from = data.draw(st.integers(0, start))
    filling = transcript.between(lacking_from, start)
    row = covered(filling)
    if start == lacking_from:
        assert filling == []
        return
    assert filling[0].position <= lacking_from
    assert filling[0].position + len(row) == start
    assert {step.want for step in filling} == {"nothing"}
    known = {step.position + i: token for step in steps for i, token in enumerate(step.tokens)}
    for i, token in enumerate(row):
        position = filling[0].position + i
        assert token == known.get(position, 100 + position)


def test_a_token_that_does_not_come_next_says_nothing() -> None:
    transcript = Transcript([1, 2, 3], 8)
    transcript.drawn(3, 9)
    assert transcript.resume_at(99) == 0
    for action in generation([1, 2, 3], 8, run_ahead=True).start():
        assert isinstance(action, SendStep)
        transcript.sent(action)
    for position in (2, 4, 1_000_000):
        transcript.drawn(position, 9)
    assert transcript.resume_at(0) == 0
    transcript.drawn(3, 9)
    transcript.drawn(3, 8)
    assert transcript.since(transcript.resume_at(0)) == [SendStep(3, (9,), "token", 42)]


@pytest.mark.parametrize("scored", range(4))
def test_a_text_is_scored_on_from_the_first_step_without_scores(scored: int) -> None:
    transcript = Transcript((), 8)
    steps = [SendStep(a, tuple(range(a, b)), "scores", targets=(0,) * (b - a)) for a, b in chunks(30, 8)]
    for step in steps:
        transcript.sent(step)
    transcript.scored(steps[2].position)  # out of turn
    for step in steps[:scored]:
        transcript.scored(step.position)
    start = transcript.resume_at(30)
    assert start == 8 * scored
    assert transcript.since(start) == steps[scored:]


def test_before_the_first_token_the_prompt_goes_on_where_all_hold_it() -> None:
    transcript = Transcript(list(range(41)), 10)
    for action in generation(list(range(41)), 10, run_ahead=True).start():
        assert isinstance(action, SendStep)
        transcript.sent(action)
    assert [transcript.resume_at(length) for length in (0, 9, 10, 25, 39, 40, 99)] == [0, 0, 10, 20, 30, 40, 40]


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.sets(st.sampled_from("efgh")), st.integers(0, 9))
def test_who_failed_first_is_asked_first_and_busy_ones_every_other_time(
    failed: list[str], full: set[str], attempt: int
) -> None:
    lost, busy = [PeerId(peer) for peer in failed], {PeerId(peer) for peer in full}
    order = left_out_by_turns(lost, busy, attempt)
    assert order[0] == set(lost) | busy
    assert order[-1] == set(), "whoever there is may be asked at last"
    assert set(lost) in order, "busy ones alone"
    if lost:
        assert order[1] == (set(lost) if attempt % 2 else set(lost[1:]) | busy)
    for without in order:
        asked = [peer for peer in lost if peer not in without | busy]
        assert asked == [peer for peer in lost if peer not in busy][: len(asked)], "who failed last is asked last"
