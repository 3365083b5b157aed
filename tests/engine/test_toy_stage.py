from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p2pgrid.engine.stage import Stage
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.wire.tensors import Floats, Ints
from tests.engine.stages import chain, in_chunks

LAYERS = 6
CONTEXT = 64

texts = st.lists(st.integers(0, 255), min_size=2, max_size=40).map(lambda ids: np.array(ids, np.int32))
cuts = st.sets(st.integers(1, LAYERS - 1))


def stages(cuts: set[int], seed: int = 0) -> list[Stage]:
    return [ToyStage(Span(*ends), LAYERS, 3, CONTEXT, seed) for ends in pairwise([0, *sorted(cuts), LAYERS])]


def straight(text: Ints, seed: int = 0) -> Floats:
    return in_chunks(stages(set(), seed), 0, text, [len(text)])


def likeliest(text: Ints, n: int) -> list[int]:
    """The next `n` tokens, greedily."""
    whole, answer = stages(set()), list[int]()
    scores = chain(whole, 0, 0, text, 1)
    for position in range(len(text), len(text) + n):
        answer.append(int(scores[0].argmax()))
        scores = chain(whole, 0, position, np.array(answer[-1:], np.int32), 1)
    return answer


@given(text=texts, cuts=cuts, ends=st.sets(st.integers(1, 39)))
@settings(max_examples=100, deadline=None)
def test_no_split_and_no_chunking_changes_a_bit(text: Ints, cuts: set[int], ends: set[int]) -> None:
    inside = [0, *sorted(end for end in ends if end < len(text)), len(text)]
    sizes = [stop - start for start, stop in pairwise(inside)]
    assert np.array_equal(in_chunks(stages(cuts), 0, text, sizes), straight(text))


@given(text=texts, other=texts, kept=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_going_back_forgets_and_rows_are_apart(text: Ints, other: Ints, kept: int) -> None:
    kept = min(kept, len(text) - 1)
    two = stages({2})
    chain(two, 0, 0, text[:kept], 0)
    chain(two, 0, kept, other[: CONTEXT - kept], 0)
    chain(two, 1, 0, other, 0)
    again = chain(two, 0, kept, text[kept:], len(text) - kept)
    assert np.array_equal(again, straight(text)[kept:])


@given(text=texts, at=st.integers(0, 38), token=st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_every_later_logit_depends_on_every_earlier_token(text: Ints, at: int, token: int) -> None:
    assume(at < len(text) and text[at] != token)
    changed = text.copy()
    changed[at] = token
    differs = (straight(changed) != straight(text)).any(axis=-1)
    assert not differs[:at].any()
    assert differs[at:].all()


@given(text=texts, at=st.integers(0, 37))
@settings(max_examples=100, deadline=None)
def test_the_order_of_tokens_matters(text: Ints, at: int) -> None:
    assume(at + 1 < len(text) and text[at] != text[at + 1])
    swapped = text.copy()
    swapped[[at, at + 1]] = text[[at + 1, at]]
    assert (straight(swapped)[at:] != straight(text)[at:]).any(axis=-1).all()


@given(text=texts)
@settings(max_examples=30, deadline=None)
def test_a_lost_or_doubled_step_changes_the_answer(text: Ints) -> None:
    assume(text[-1] != text[-2])
    answer = likeliest(text, 8)
    assert likeliest(text[:-1], 8) != answer
    assert likeliest(np.append(text, text[-1]), 8) != answer


def test_the_model_is_its_seed() -> None:
    text = np.arange(10, dtype=np.int32)
    assert np.array_equal(straight(text, seed=3), straight(text, seed=3))
    assert not np.array_equal(straight(text, seed=3), straight(text, seed=4))
    assert straight(text).min() >= 0 and straight(text).max() < 16


def test_the_answers_are_the_same_on_every_machine() -> None:
    assert likeliest(np.arange(5, dtype=np.int32), 8) == [43, 174, 63, 94, 235, 212, 252, 19]


def test_hidden_states_survive_half_precision() -> None:
    text = np.arange(20, dtype=np.int32)
    first, last = stages({3})
    hidden = first.step(0, 0, text, None, 0)
    assert np.array_equal(hidden.astype(np.float16).astype(np.float32), hidden)
    assert np.array_equal(last.step(0, 0, text, hidden.astype(np.float16).astype(np.float32), 20), straight(text))


def test_only_the_wanted_logits_come_back() -> None:
    text = np.arange(9, dtype=np.int32)
    assert np.array_equal(chain(stages(set()), 0, 0, text, 3), straight(text)[-3:])
    assert chain(stages(set()), 0, 0, text, 0).shape == (0, 256)


def test_a_released_row_begins_anew() -> None:
    [stage] = stages(set())
    text = np.arange(9, dtype=np.int32)
    chain([stage], 0, 0, text, 0)
    stage.release(0)
    with pytest.raises(ValueError, match="row of 0"):
        chain([stage], 0, 9, text, 0)
    assert np.array_equal(chain([stage], 0, 0, text, 9), straight(text))


def test_a_gap_or_an_overrun_is_the_callers_bug() -> None:
    [stage] = stages(set())
    chain([stage], 0, 0, np.arange(4, dtype=np.int32), 0)
    for position, n in ((5, 1), (4, CONTEXT - 3), (0, 0)):
        with pytest.raises(ValueError, match="a step of"):
            chain([stage], 0, position, np.zeros(n, np.int32), 0)


def test_a_closed_stage_says_so_and_closes_again() -> None:
    [stage] = stages(set())
    stage.close()
    stage.close()
    with pytest.raises(LocalFault, match="closed"):
        chain([stage], 0, 0, np.arange(4, dtype=np.int32), 0)
