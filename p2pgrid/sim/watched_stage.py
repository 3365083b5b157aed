"""The toy stage of simulations, which fails loudly where a real one would only do needless work."""

from collections import Counter

from p2pgrid.engine.toy_stage import ToyStage
from p2pgrid.ids import Span
from p2pgrid.wire.tensors import Floats, Ints

RUNS_MAX = 40
"""Each epoch runs a position again, and so does each draft that was wrong before it: that is a handful."""


class WatchedStage(ToyStage):
    """Raises ValueError where a step leaves a gap, as any toy stage, and where one position of a session is run again
    and again: then steps multiply on their way round.
    """

    def __init__(self, span: Span, layers: int, rows: int, context_max: int, *, seed: int, vocab: int) -> None:
        super().__init__(span, layers, rows, context_max, seed=seed, vocab=vocab)
        self._runs: dict[int, Counter[int]] = {}

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        """See `engine.stage.Stage`."""
        runs = self._runs.setdefault(row, Counter())
        runs[position] += 1
        if runs[position] > RUNS_MAX:
            raise ValueError(f"position {position} of row {row} was run {runs[position]} times")
        return super().step(row, position, tokens, hidden, logits)

    def release(self, row: int) -> None:
        """See `engine.stage.Stage`."""
        self._runs.pop(row, None)
        super().release(row)
