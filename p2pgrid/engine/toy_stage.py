"""A tiny stage for tests and simulations, exact on every machine and sensitive to every mistake.

Each layer keeps a state that it moves on by one linear step a position, in integers modulo a prime:
`state[p] = A·state[p-1] + B·x[p] + c`, and passes on `x[p] + state[p]`. `A` can be inverted, so no position
and no order of positions is ever forgotten; integers make the arithmetic the same in any split or chunking.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pgrid.engine.stage import KvBlock
from p2pgrid.errors import LocalFault, PeerMisbehaved
from p2pgrid.ids import Span
from p2pgrid.wire.tensors import Floats, Ints

PRIME = 251
"""States fit a byte, and hidden values survive float16."""
LOGITS_PRIME = 65_521
LOGITS_TOP = 16.0

Integers = npt.NDArray[np.int64]


class ToyStage:
    """See `engine.stage.Stage`. Hidden states are whole numbers in `[0, 251)`, logits lie in `[0, 16)`.

    Unlike a real stage it notices a step that leaves a gap, and raises ValueError: a bug of the caller.
    """

    def __init__(
        self,
        span: Span,
        layers: int,
        rows: int,
        context_max: int,
        seed: int = 0,
        hidden: int = 16,
        vocab: int = 256,
    ) -> None:
        """`seed`, `hidden` and `vocab` are the model; stages of one model have them in common."""
        self.span = span
        self.layers = layers
        self.hidden = hidden
        self.vocab = vocab
        self.rows = rows
        self.context_max = context_max
        self.kv_positions = rows * context_max
        self.position_bytes = len(span) * hidden
        self._layers = [_Layer(seed, layer, hidden) for layer in range(span.start, span.stop)]
        ends = np.random.default_rng((seed, 2**31))
        self._embedding: Integers = ends.integers(0, PRIME, (vocab, hidden))
        self._head: Integers = ends.integers(1, LOGITS_PRIME, (vocab, hidden))
        self._states: dict[int, npt.NDArray[np.uint8]] = {}
        self._lengths = [0] * rows
        self._filled = [0] * rows
        """The longest that each row was: what a step took back can still be read."""
        self._closed = False

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        """See `engine.stage.Stage`."""
        self._check_open()
        n = len(tokens)
        if not (n and 0 <= position <= self._lengths[row] and position + n <= self.context_max):
            raise ValueError(
                f"a step of {n} at {position} in a row of {self._lengths[row]} of {self.context_max} positions"
            )
        x = self._embedding[tokens] if self.span.start == 0 else np.asarray(hidden, dtype=np.int64)
        for layer, states in zip(self._layers, self._row(row), strict=True):
            x = layer.run(x, states[position : position + n + 1])
        self._set_length(row, position + n)
        if self.span.stop < self.layers:
            return x.astype(np.float32)
        scores = x[n - logits :] @ self._head.T % LOGITS_PRIME
        return (scores * (LOGITS_TOP / LOGITS_PRIME)).astype(np.float32)

    def step_rows(self, rows: Sequence[int], positions: Sequence[int], tokens: Ints, hidden: Floats | None) -> Floats:
        """See `engine.stage.Stage`."""
        if len(set(rows)) < len(rows):
            raise ValueError(f"a row is twice in one batch: {list(rows)}")
        return np.concatenate(
            [
                self.step(row, positions[i], tokens[i : i + 1], None if hidden is None else hidden[i : i + 1], 1)
                for i, row in enumerate(rows)
            ]
        )

    def save(self, row: int, start: int, stop: int) -> KvBlock:
        """See `engine.stage.Stage`: states `[layers, stop - start, hidden]`, uint8."""
        self._check_open()
        if not 0 <= start < stop <= self._filled[row]:
            raise ValueError(f"positions {start}:{stop} of a row of {self._filled[row]} positions")
        return self._row(row)[:, start + 1 : stop + 1].copy()

    def load(self, row: int, start: int, block: KvBlock) -> None:
        """See `engine.stage.Stage`. The row's length is then the block's end."""
        self._check_open()
        stop = start + block.shape[1]
        if not (0 <= start <= self._lengths[row] and stop <= self.context_max):
            raise ValueError(f"positions {start}:{stop} into a row of {self._lengths[row]} of {self.context_max}")
        self._row(row)[:, start + 1 : stop + 1] = block
        self._set_length(row, stop)

    def unpack(self, data: bytes, positions: int) -> KvBlock:
        """See `engine.stage.Stage`."""
        if len(data) != positions * self.position_bytes:
            raise PeerMisbehaved(f"{len(data)} bytes are not the states of {positions} positions")
        return np.frombuffer(data, np.uint8).reshape(len(self.span), positions, self.hidden)

    def release(self, row: int) -> None:
        """See `engine.stage.Stage`."""
        self._states.pop(row, None)
        self._lengths[row] = self._filled[row] = 0

    def close(self) -> None:
        """See `engine.stage.Stage`."""
        self._closed = True
        self._states.clear()

    def _set_length(self, row: int, length: int) -> None:
        self._lengths[row] = length
        self._filled[row] = max(self._filled[row], length)

    def _check_open(self) -> None:
        if self._closed:
            raise LocalFault(f"the stage of layers {self.span} is closed")

    def _row(self, row: int) -> npt.NDArray[np.uint8]:
        """States `[layers, context_max + 1, hidden]`, of which the first is before position 0."""
        if row not in self._states:
            self._states[row] = np.zeros((len(self._layers), self.context_max + 1, self.hidden), np.uint8)
        return self._states[row]


class _Layer:
    def __init__(self, seed: int, layer: int, hidden: int) -> None:
        rng = np.random.default_rng((seed, layer))
        # A rotation of the state, each value scaled by something that has an inverse: A can be inverted.
        self._order = rng.permutation(hidden)
        self._scale: Integers = rng.integers(2, PRIME, hidden)
        self._input: Integers = rng.integers(0, PRIME, (hidden, hidden))
        self._shift: Integers = rng.integers(0, PRIME, hidden)

    def run(self, x: Integers, states: npt.NDArray[np.uint8]) -> Integers:
        """`x` `[n, hidden]` through the layer; `states` `[n + 1, hidden]` holds the state before, takes the rest."""
        moved = x @ self._input.T + self._shift
        state = states[0].astype(np.int64)
        for at, step in enumerate(moved):
            state = (self._scale * state[self._order] + step) % PRIME
            states[at + 1] = state
        return (x + states[1:]) % PRIME
