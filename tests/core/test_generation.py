from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.generation import Action, Emit, Finish, Generation, SendStep, chunks
from p2pgrid.errors import BadInput, PeerMisbehaved

bounded = settings(max_examples=100, deadline=None)
prompts = st.lists(st.integers(0, 9), min_size=1, max_size=30)
stop_sets = st.sets(st.integers(0, 9), max_size=2)


def next_token(row: Sequence[int]) -> int:
    """A model whose answer hangs on every token before it."""
    digest = 17
    for token in row:
        digest = (digest * 31 + token + 1) % 10_007
    return digest % 10


def reference(prompt: Sequence[int], max_tokens: int, stop_tokens: set[int], context_max: int) -> tuple[list[int], str]:
    tokens: list[int] = []
    while len(tokens) < max_tokens and len(prompt) + len(tokens) < context_max:
        tokens.append(next_token([*prompt, *tokens]))
        if tokens[-1] in stop_tokens:
            return tokens, "stop"
    return tokens, "length"


class FakePipeline:
    """Runs steps as stages do: sets its row's length, appends, and runs ahead as far as it is granted."""

    def __init__(self, stop_tokens: set[int]) -> None:
        self.row: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.answers: deque[tuple[int, int]] = deque()
        self._stop_tokens = stop_tokens

    def run(self, step: SendStep) -> None:
        assert step.position <= len(self.row)
        assert step.want != "scores"
        self.row[step.position :] = step.tokens
        self.steps.append((step.position, len(step.tokens)))
        if step.want == "nothing":
            return
        position, token = len(self.row), next_token(self.row)
        self.answers.append((position, token))
        if position < step.until and token not in self._stop_tokens:
            self.run(SendStep(position, (token,), "token", step.until))


def drive(machine: Generation, pipeline: FakePipeline, *, repeat: bool = False) -> tuple[list[int], str]:
    """The emitted tokens and the reason of the end; with `repeat` each answer comes twice."""
    shown: list[int] = []
    pending: list[Action] = machine.start()
    while True:
        for action in pending:
            match action:
                case SendStep():
                    pipeline.run(action)
                case Emit(token=token):
                    shown.append(token)
                case Finish(reason=reason):
                    assert action is pending[-1]
                    return shown, reason
        position, token = pipeline.answers.popleft()
        pending = machine.on_token(position, token)
        if repeat:
            assert machine.on_token(position, token) == []


@given(st.integers(0, 600), st.integers(3, 130))
@settings(max_examples=300, deadline=None)
def test_chunks_cover_the_text_and_none_has_one_position_unless_the_text_has(length: int, size: int) -> None:
    cuts = chunks(length, size)
    assert [position for a, b in cuts for position in range(a, b)] == list(range(length))
    assert all(b - a <= size for a, b in cuts)
    assert length == 1 or all(b - a >= 2 for a, b in cuts)
    assert len(cuts) == -(-length // size)


def test_a_remainder_of_one_borrows_from_the_chunk_before_it() -> None:
    assert chunks(257, 128) == [(0, 128), (128, 255), (255, 257)]
    assert chunks(256, 128) == [(0, 128), (128, 256)]
    assert chunks(1, 128) == [(0, 1)]
    assert chunks(0, 128) == []
    assert chunks(0, 128) == []


@pytest.mark.parametrize("size", [-1, 0, 1, 2])
def test_a_chunk_too_small_to_lend_a_position_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        chunks(10, size)


@given(prompts, st.integers(1, 20), stop_sets, st.integers(0, 25), st.integers(3, 8), st.booleans(), st.booleans())
@bounded
def test_the_answer_is_the_models_own_with_and_without_run_ahead(
    prompt: list[int], max_tokens: int, stops: set[int], room: int, chunk: int, run_ahead: bool, repeat: bool
) -> None:
    context_max = len(prompt) + 1 + room
    machine = Generation(
        prompt,
        max_tokens=max_tokens,
        stop_tokens=sorted(stops),
        context_max=context_max,
        chunk=chunk,
        run_ahead=run_ahead,
    )
    pipeline = FakePipeline(stops)
    tokens, reason = drive(machine, pipeline, repeat=repeat)
    assert (tokens, reason) == reference(prompt, max_tokens, stops, context_max)
    assert (machine.tokens, machine.finish_reason) == (tokens, reason)
    # Every position but the last one was run, once; nothing was granted beyond what is shown.
    assert pipeline.row == [*prompt, *tokens[:-1]]
    assert pipeline.steps == [
        *((a, b - a) for a, b in chunks(len(prompt) - 1, chunk)),
        *((len(prompt) - 1 + i, 1) for i in range(len(tokens))),
    ]
    assert not pipeline.answers


def start(
    prompt: Sequence[int] = (1, 2, 3, 4, 5, 6, 7),
    *,
    max_tokens: int = 4,
    stop_tokens: Sequence[int] = (9,),
    context_max: int = 100,
    chunk: int = 3,
    run_ahead: bool = True,
) -> Generation:
    return Generation(
        prompt,
        max_tokens=max_tokens,
        stop_tokens=stop_tokens,
        context_max=context_max,
        chunk=chunk,
        run_ahead=run_ahead,
    )


def test_the_last_token_of_the_prompt_goes_alone_and_asks_for_a_token_with_all_that_is_granted() -> None:
    assert start().start() == [
        SendStep(0, (1, 2, 3), "nothing"),
        SendStep(3, (4, 5, 6), "nothing"),
        SendStep(6, (7,), "token", until=10),
    ]


def test_a_prompt_of_one_token_is_one_step() -> None:
    assert start(prompt=(5,)).start() == [SendStep(0, (5,), "token", until=4)]


def test_without_run_ahead_nothing_is_granted_and_each_token_is_sent() -> None:
    machine = start(run_ahead=False)
    assert machine.start()[-1] == SendStep(6, (7,), "token", until=0)
    assert machine.on_token(7, 8) == [Emit(8), SendStep(7, (8,), "token")]


def test_the_context_limits_the_grant() -> None:
    last = start(max_tokens=50, context_max=9).start()[-1]
    assert isinstance(last, SendStep)
    assert last.until == 8


def test_a_token_that_comes_twice_is_passed_over() -> None:
    machine = start()
    assert machine.on_token(7, 5) == [Emit(5)]
    assert machine.on_token(7, 6) == []
    assert machine.on_token(0, 6) == []
    assert machine.tokens == [5]


@given(st.integers(1, 2**31))
@bounded
def test_a_token_from_the_future_is_misbehaviour_and_changes_nothing(ahead: int) -> None:
    machine = start()
    with pytest.raises(PeerMisbehaved, match="while 7 is the next one"):
        machine.on_token(7 + ahead, 5)
    assert machine.on_token(7, 5) == [Emit(5)]


def test_a_stop_token_ends_the_answer_and_is_part_of_it() -> None:
    machine = start()
    assert machine.on_token(7, 9) == [Emit(9), Finish("stop")]
    assert machine.on_token(8, 1) == []
    assert machine.tokens == [9]


def test_the_last_token_that_was_asked_for_ends_the_answer() -> None:
    machine = start(max_tokens=2, run_ahead=False)
    assert machine.on_token(7, 1) == [Emit(1), SendStep(7, (1,), "token")]
    assert machine.on_token(8, 2) == [Emit(2), Finish("length")]


def test_a_stop_token_in_the_last_place_is_a_stop() -> None:
    assert start(max_tokens=1).on_token(7, 9) == [Emit(9), Finish("stop")]


def test_a_stop_string_ends_the_answer_once_and_tokens_on_their_way_are_passed_over() -> None:
    machine = start()
    machine.on_token(7, 1)
    assert machine.stop() == [Finish("stop")]
    assert machine.stop() == []
    assert machine.on_token(8, 2) == []
    assert machine.on_token(20, 2) == []
    assert machine.finish_reason == "stop"


def test_what_cannot_be_answered_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(BadInput, match="the prompt is empty"):
        start([])
    with pytest.raises(BadInput, match="max-tokens is 0"):
        start(max_tokens=0)
    with pytest.raises(BadInput, match="the prompt has 7 tokens, and the context holds 7 with at least one"):
        start(context_max=7)
    assert start(context_max=8).next_position == 7
