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


@given(text=texts, others=st.permutations([0, 1, 2]), n=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_batch_answers_as_its_rows_one_at_a_time(text: Ints, others: list[int], n: int) -> None:
    [together], [alone] = stages(set()), stages(set())
    for stage in (together, alone):
        for row in range(3):
            chain([stage], row, 0, np.resize(text, row + 1), 0)
    rows, tokens = others[:n], text[:1].repeat(n)
    found = together.step_rows(rows, [row + 1 for row in rows], tokens, None)
    for logits, row in zip(found, rows, strict=True):
        assert np.array_equal(logits[None], chain([alone], row, row + 1, tokens[:1], 1))


def test_a_row_twice_in_a_batch_is_the_callers_bug() -> None:
    [stage] = stages(set())
    with pytest.raises(ValueError, match="twice"):
        stage.step_rows([1, 1], [0, 0], np.zeros(2, np.int32), None)


@given(text=texts, cut=st.integers(1, 39))
@settings(max_examples=50, deadline=None)
def test_a_saved_row_goes_on_in_another_stage_as_in_its_own(text: Ints, cut: int) -> None:
    cut = min(cut, len(text) - 1)
    [first], [second] = stages(set()), stages(set())
    chain([first], 0, 0, text, 0)
    blocks = [first.save(0, 0, cut), first.save(0, cut, len(text))]
    assert sum(block.nbytes for block in blocks) == len(text) * first.position_bytes
    chain([second], 2, 0, text[::-1], 0)
    second.release(2)
    second.load(2, 0, blocks[0])
    assert np.array_equal(chain([second], 2, cut, text[cut:], 1), straight(text)[-1:])
    second.load(2, cut, blocks[1])
    token = text[:1]
    assert np.array_equal(chain([second], 2, len(text), token, 1), straight(np.append(text, token))[-1:])


def test_positions_that_are_not_filled_are_neither_saved_nor_loaded_behind_a_gap() -> None:
    [stage] = stages(set())
    chain([stage], 0, 0, np.arange(4, dtype=np.int32), 0)
    block = stage.save(0, 0, 4)
    for start, stop in ((0, 5), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="positions"):
            stage.save(0, start, stop)
    for start in (5, -1, CONTEXT - 2):
        with pytest.raises(ValueError, match="positions"):
            stage.load(0, start, block)


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
