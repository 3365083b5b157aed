"""A batch of steps, and what comes of each: as if each had been run by itself."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.drawing import Drawer, Drawn
from p2pgrid.engine.run_step import HiddenOut, RowStep, run_rows, run_step
from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats, Ints

LAYERS, ROWS, HIDDEN = 4, 6, 16

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_p=st.sampled_from([0.5, 1.0]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 5),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -1.5]),
)
wants = st.sampled_from(["nothing", "token"])


def toy(span: Span) -> ToyStage:
    return ToyStage(span, LAYERS, ROWS, 64)


def some_hidden(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).integers(0, 200, (n, HIDDEN)).astype(np.float32)


@given(st.permutations(range(ROWS)), st.integers(1, ROWS), st.data())
@settings(max_examples=50, deadline=None)
def test_a_batch_gives_what_each_step_gives_by_itself(order: list[int], n: int, data: st.DataObject) -> None:
    for span in (Span(0, 2), Span(2, 4)):
        together, alone = toy(span), toy(span)
        for stage in (together, alone):
            for row in range(ROWS):
                stage.step(row, 0, np.arange(row + 1, dtype=np.int32), some_hidden(row + 1, row), 0)
        steps = [
            RowStep(
                row,
                row + 1,
                data.draw(st.integers(0, 255)),
                some_hidden(1, row + 50)[0] if span.start else None,
                data.draw(wants),
                Drawer(data.draw(samplings), prompt_length=row + 1),
            )
            for row in order[:n]
        ]
        for found, step in zip(run_rows(together, steps), steps, strict=True):
            expected = run_step(
                alone,
                step.row,
                step.position,
                np.array([step.token], np.int32),
                None if step.hidden is None else step.hidden[None],
                want=step.want,
                targets=np.empty(0, np.int32),
                drawer=step.drawer,
            )
            if isinstance(expected, HiddenOut):
                assert isinstance(found, HiddenOut) and np.array_equal(found.hidden, expected.hidden)
            else:
                assert found == expected


class BrokenRow(ToyStage):
    """Logits that are no numbers for one row."""

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        answer = super().step(row, position, tokens, hidden, logits)
        return answer * np.float32(np.nan) if row == 1 else answer


def test_a_row_whose_logits_are_not_finite_fails_alone() -> None:
    stage = BrokenRow(Span(0, LAYERS), LAYERS, ROWS, 64)
    steps = [RowStep(row, 0, 7, None, "token", Drawer(Sampling())) for row in range(3)]
    before, broken, after = run_rows(stage, steps)
    assert isinstance(before, Drawn) and before == after
    assert isinstance(broken, LocalFault) and "not finite" in str(broken)


def test_a_row_that_wants_nothing_is_not_looked_at() -> None:
    stage = BrokenRow(Span(0, LAYERS), LAYERS, ROWS, 64)
    assert run_rows(stage, [RowStep(1, 0, 7, None, "nothing", Drawer(Sampling()))]) == [None]
