"""The canary answer that a stage must give before its node says that it serves."""

import pytest
import trio

from p2pgrid.engine.executor import InlineExecutor
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.node.selftest import prove_stage
from p2pgrid.wire.tensors import Floats, Ints
from tests.swarm_kit import CountedStage

SPANS = [Span(0, 10), Span(0, 4), Span(4, 7), Span(7, 10)]


class _Recording(CountedStage):
    """Takes the made-up hidden states as whole numbers, as a toy stage wants them, and alters one result."""

    def __init__(self, span: Span, wrong_at: int = -1, by: float = 0.0) -> None:
        super().__init__(span)
        self.wrong_at = wrong_at
        self.by = by
        self.rows_used: set[int] = set()

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        self.rows_used.add(row)
        if hidden is not None:
            assert hidden.shape == (len(tokens), self.hidden)
        result = super().step(row, position, tokens, hidden, logits)
        if self.steps == self.wrong_at:
            result = result.copy()
            result[-1, -1] += self.by
        return result


@pytest.mark.parametrize("span", SPANS, ids=str)
async def test_a_sound_stage_passes_and_its_step_is_timed(span: Span, autojump_clock: trio.abc.Clock) -> None:
    stage = _Recording(span)
    proof = await prove_stage(stage, InlineExecutor(0.004))
    assert proof.step_ms == pytest.approx(4.0)
    assert proof.tokens_per_s_max == pytest.approx(stage.rows / 0.004)
    assert stage.rows_used == {0, 1, 2, 3}
    assert stage.released == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("by", [float("nan"), float("inf"), float("-inf")])
async def test_a_value_that_is_not_finite_is_a_fault_of_this_machine(
    span: Span, by: float, autojump_clock: trio.abc.Clock
) -> None:
    stage = _Recording(span, wrong_at=3, by=by)
    with pytest.raises(LocalFault, match=f"layers {span} computes values that are not finite"):
        await prove_stage(stage, InlineExecutor())
    assert stage.released == [0]


@pytest.mark.parametrize("wrong_at", [1, 7, 8, 14])
async def test_two_answers_to_one_question_are_a_fault_of_this_machine(
    wrong_at: int, autojump_clock: trio.abc.Clock
) -> None:
    stage = _Recording(Span(4, 7), wrong_at, by=1.0)
    with pytest.raises(LocalFault, match="two answers to one question"):
        await prove_stage(stage, InlineExecutor())
    assert stage.released == [0]


async def test_a_runtime_that_fails_in_the_test_gives_its_row_back(autojump_clock: trio.abc.Clock) -> None:
    class Failing(_Recording):
        def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
            raise LocalFault("the runtime failed")

    stage = Failing(Span(0, 10))
    with pytest.raises(LocalFault, match="the runtime failed"):
        await prove_stage(stage, InlineExecutor())
    assert stage.released == [0]


async def test_a_test_that_is_cancelled_gives_its_row_back(autojump_clock: trio.abc.Clock) -> None:
    stage = _Recording(Span(0, 10))
    with trio.move_on_after(1.2):
        await prove_stage(stage, InlineExecutor(0.5))
    assert 0 < stage.steps < 14
    assert stage.released == [0]
