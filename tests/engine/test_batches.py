"""Batches of rows and saved rows, in the real stage: to the bit what one row at a time computes."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.engine.ort_stage import BINDINGS_MAX, OrtStage
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.tensors import Floats, Ints
from tests.engine.stages import chain, in_chunks, opened, some_tokens, tiny_model

ROWS = 12
SETTINGS = StageSettings(context_max=256, sessions_max=ROWS, threads=2)
KINDS = {
    "Q4_1": {"*": "Q4_1", "token_embd": "Q8_0"},
    "mixed": {"*": "Q8_0", "attn_v": "F16", "ffn_up": "Q4_0", "ffn_down": "Q4_1", "attn_output": "F32"},
    "Q4_0": {"*": "Q4_0"},
    "F32": {"*": "F32"},
}

batches = st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1, max_size=ROWS)


@pytest.fixture(scope="module", params=KINDS)
def halves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[OrtStage]]:
    """A model in two stages."""
    path, manifest = tiny_model(tmp_path_factory.mktemp("tiny"), kinds=KINDS[request.param])
    with opened(path, manifest, Span(0, 2), Span(2, 4), settings=SETTINGS) as stages:
        yield stages


def batch(stages: list[OrtStage], rows: list[int], positions: list[int], tokens: Ints) -> Floats:
    hidden: Floats | None = None
    for stage in stages:
        hidden = stage.step_rows(rows, positions, tokens, hidden)
    assert hidden is not None
    return hidden


@given(rows=batches, starts=st.lists(st.integers(0, 40), min_size=ROWS, max_size=ROWS))
@settings(max_examples=40, deadline=None)
def test_a_batch_answers_as_its_rows_one_at_a_time(halves: list[OrtStage], rows: list[int], starts: list[int]) -> None:
    for row in rows:
        if starts[row]:
            chain(halves, row, 0, some_tokens(starts[row], seed=row), 0)
    steps = [some_tokens(len(rows), seed=100 + at) for at in range(3)]
    together = [batch(halves, rows, [starts[row] + at for row in rows], tokens) for at, tokens in enumerate(steps)]
    for i, row in enumerate(rows):
        for at, tokens in enumerate(steps):
            alone = chain(halves, row, starts[row] + at, tokens[i : i + 1], 1)
            assert np.array_equal(together[at][i], alone[0])


@given(rows=batches)
@settings(max_examples=20, deadline=None)
def test_a_batch_touches_no_row_but_its_own(halves: list[OrtStage], rows: list[int]) -> None:
    others = [row for row in range(ROWS) if row not in rows]
    for row in range(ROWS):
        chain(halves, row, 0, some_tokens(20, seed=row), 0)
    before = [stage.save(row, 0, 20) for row in others for stage in halves]
    batch(halves, rows, [20] * len(rows), some_tokens(len(rows)))
    after = [stage.save(row, 0, 20) for row in others for stage in halves]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    for row in others:
        straight = in_chunks(halves, row, some_tokens(26, seed=row), [20, 6])[20:]
        assert np.array_equal(chain(halves, row, 20, some_tokens(26, seed=row)[20:], 6), straight)


@pytest.mark.parametrize("held", [SETTINGS.context_max, 7])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_row_between_those_of_a_batch_keeps_all_it_holds(halves: list[OrtStage], held: int, loaded: bool) -> None:
    """Up to the last position of the context, whether it was computed or put there."""
    for row, length in ((0, 9), (1, held), (2, 5)):
        chain(halves, row, 0, some_tokens(length, seed=row), 0)
    if loaded:
        for stage in halves:
            block = stage.save(1, 0, held)
            stage.release(1)
            stage.load(1, 0, block)
    before = [stage.save(1, 0, held) for stage in halves]
    together = batch(halves, [2, 0], [5, 9], some_tokens(2, seed=9))
    assert all(np.array_equal(stage.save(1, 0, held), kept) for stage, kept in zip(halves, before, strict=True))
    for i, (row, position) in enumerate([(2, 5), (0, 9)]):
        assert np.array_equal(together[i], chain(halves, row, position, some_tokens(2, seed=9)[i : i + 1], 1)[0])


def test_more_ranges_of_rows_than_stay_bound_are_computed_all_the_same(halves: list[OrtStage]) -> None:
    ranges = [(start, stop) for start in range(ROWS) for stop in range(start + 1, ROWS + 1)]
    assert len(ranges) > BINDINGS_MAX
    for row in range(ROWS):
        chain(halves, row, 0, some_tokens(9, seed=row), 0)
    tokens = some_tokens(ROWS, seed=7)
    everything = batch(halves, list(range(ROWS)), [9] * ROWS, tokens)
    for start, stop in [*ranges, *ranges]:
        found = batch(halves, list(range(start, stop)), [9] * (stop - start), tokens[start:stop])
        assert np.array_equal(found, everything[start:stop])


def test_a_row_twice_in_a_batch_is_the_callers_bug(halves: list[OrtStage]) -> None:
    with pytest.raises(ValueError, match="twice"):
        halves[0].step_rows([1, 1], [0, 0], some_tokens(2), None)


def test_a_batch_that_the_runtime_refuses_is_a_local_fault(halves: list[OrtStage]) -> None:
    with pytest.raises(LocalFault, match="layers 2:4 failed at a step of 2 rows"):
        halves[1].step_rows([0, 1], [0, 0], some_tokens(2), np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("released", [False, True])
def test_a_saved_row_goes_on_in_another_stage_as_in_its_own(tmp_path: Path, released: bool) -> None:
    path, manifest = tiny_model(tmp_path, kinds=KINDS["Q4_1"], context=256)
    tokens, sizes = some_tokens(170), [20, 10, *10 * [1]]
    with opened(path, manifest, settings=SETTINGS) as [first], opened(path, manifest, settings=SETTINGS) as [second]:
        chain([first], 3, 0, tokens[:130], 0)
        blocks = [first.save(3, start, stop) for start, stop in pairwise([0, 64, 128])]
        straight = in_chunks([first], 3, tokens[128:168], sizes, position=128)
        if released:
            chain([second], 5, 0, some_tokens(90, seed=4), 0)
            second.release(5)
            first.release(3)
        second.load(5, 0, blocks[0])
        second.load(5, 64, blocks[1])
        assert np.array_equal(in_chunks([second], 5, tokens[128:168], sizes, position=128), straight)


def test_a_saved_block_is_a_copy_and_costs_what_the_stage_says(halves: list[OrtStage]) -> None:
    stage = halves[0]
    stage.step(0, 0, some_tokens(10), None, 0)
    block = stage.save(0, 2, 9)
    kept = block.copy()
    stage.step(0, 0, some_tokens(10, seed=1), None, 0)
    assert np.array_equal(block, kept)
    assert block.nbytes == 7 * stage.position_bytes
    assert block.shape[:2] == (len(stage.span), 2)


def test_a_closed_stage_refuses_batches_and_blocks(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path)
    with opened(path, manifest, settings=SETTINGS) as [stage]:
        chain([stage], 0, 0, some_tokens(4), 0)
        block = stage.save(0, 0, 4)
        stage.close()
        attempts = (
            lambda: stage.step_rows([0], [0], some_tokens(1), None),
            lambda: stage.save(0, 0, 4),
            lambda: stage.load(0, 0, block),
        )
        for attempt in attempts:
            with pytest.raises(LocalFault, match="closed"):
                attempt()
