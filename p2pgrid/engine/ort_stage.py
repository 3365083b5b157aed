"""A stage that onnxruntime computes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import structlog

from p2pgrid.engine.graph_cache import Build, GraphCache, graph_key
from p2pgrid.engine.kv import KvSlabs, whole_pages
from p2pgrid.engine.ort_session import FAILURES, new_session, one_line, threads_for, trim_heap
from p2pgrid.engine.row_runs import position_runs, row_runs
from p2pgrid.engine.stage import KvBlock
from p2pgrid.errors import LocalFault
from p2pgrid.folders import temporary_folder
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.manifest import Manifest
from p2pgrid.wire.tensors import Floats, Ints

log = structlog.get_logger()

Array = npt.NDArray[Any]
Advance = Callable[[int, int], None]

QUIET_STEPS = 3
"""So many decode steps after a prefill, what the prefill took goes back to the machine: 10 to 20 MB for 1 ms. Less
than that many come between the prefill steps of a busy stage, which needs the memory again at once."""
BINDINGS_MAX = 64
"""Ranges of rows whose memory stays bound; the least recently used gives way."""


def open_stage(
    path: Path,
    manifest: Manifest,
    span: Span,
    settings: StageSettings,
    advance: Advance | None = None,
    *,
    cache: Path | None = None,
) -> "OrtStage":
    """Read the span's weights from the checkpoint and make them ready to run; half a second for 60 MB.

    With a folder for a `cache`, what was built is kept there (see `engine.graph_cache`), and the next time neither
    the checkpoint is read nor anything built. Without one, or when it cannot be written, the directory for temporary
    files needs as much room as the span has weights, until the stage is closed.

    `advance(done, total)` is told the bytes read from the checkpoint; what it raises stops the work.
    Raises LocalFault when the file is damaged, the model is not supported, or room is short.
    """
    if span.stop > manifest.layers:
        raise LocalFault(f"the model has {manifest.layers} layers, so there is no span {span}")
    context_max = min(settings.context_max, manifest.context)
    slab_positions = whole_pages(context_max + 1, manifest.kv_heads, manifest.head_dim)
    threads = threads_for(settings.threads)

    def build(folder: Path) -> Path:
        # Whoever finds the graph built needs none of what builds it: 13 MB of libraries.
        from p2pgrid.checkpoints.weights import SpanWeights
        from p2pgrid.engine.graph import build_graph

        return build_graph(SpanWeights(path, manifest, span, advance), slab_positions, folder)

    try:
        kept = (
            None if cache is None else _kept_session(cache, graph_key(manifest, span, slab_positions), build, threads)
        )
        session = kept or _temporary_session(build, threads)
        slabs = KvSlabs(len(span), settings.sessions_max, manifest.kv_heads, slab_positions, manifest.head_dim)
    except (OSError, *FAILURES) as error:
        raise LocalFault(f"cannot open layers {span} of {path}: {one_line(error)}") from error
    trim_heap()
    return OrtStage(manifest, span, context_max, settings.kv_positions, session, slabs)


def _kept_session(folder: Path, key: str, build: Build, threads: int) -> onnxruntime.InferenceSession | None:
    try:
        return new_session(GraphCache(folder).graph(key, build), threads)
    except (OSError, *FAILURES) as error:
        log.warning("graph_not_kept", folder=str(folder), why=one_line(error))
        return None


def _temporary_session(build: Build, threads: int) -> onnxruntime.InferenceSession:
    with temporary_folder() as folder:
        return new_session(build(folder), threads)


class OrtStage:
    """See `engine.stage.Stage`. Steps of two or more positions give the same bits however they are cut."""

    def __init__(
        self,
        manifest: Manifest,
        span: Span,
        context_max: int,
        kv_positions: int,
        session: onnxruntime.InferenceSession,
        slabs: KvSlabs,
    ) -> None:
        self.span = span
        self.layers = manifest.layers
        self.hidden = manifest.hidden
        self.vocab = manifest.vocab
        self.rows = slabs.rows
        self.context_max = context_max
        self.kv_positions = kv_positions
        self.position_bytes = slabs.position_bytes
        self._first = span.start == 0
        self._last = span.stop == manifest.layers
        self._session: onnxruntime.InferenceSession | None = session
        self._slabs = slabs
        self._since_prefill = QUIET_STEPS
        self._bindings: OrderedDict[tuple[int, int, bool], onnxruntime.IOBinding] = OrderedDict()
        self._paired = any(given.name == "kept" for given in session.get_inputs())
        # What every binding points at: written before each run, never replaced.
        self._last_index = np.zeros(slabs.rows, np.int32)
        self._length = np.zeros((), np.int32)
        self._first_wanted = np.zeros(1, np.int64)
        self._ever_filled = np.zeros(slabs.rows, np.int32)
        """Positions of each row that may have been written since it was released: the one behind them holds nothing."""
        self._rows = np.arange(slabs.rows, dtype=np.int64)
        self._twice = np.zeros(2, np.int64)

    def step(self, row: int, position: int, tokens: Ints, hidden: Floats | None, logits: int) -> Floats:
        """See `engine.stage.Stage`."""
        session = self._opened()
        n = len(tokens)
        # One row of logits of many would be alone in the last matrix.
        unwanted = n - (2 if n > 1 and logits == 1 else logits) if self._last else 0
        output: Floats = np.empty((n - unwanted, self.vocab if self._last else self.hidden), np.float32)
        self._ever_filled[row] = max(self._ever_filled[row], position + n)
        try:
            binding = self._binding(session, row, 1, alone=n == 1)
            for start, stop in position_runs(n, logits):
                self._last_index[0] = position + stop - 1
                self._length[()] = position + stop
                self._first_wanted[0] = min(max(unwanted, start), stop) - start
                part = None if hidden is None else hidden[None, start:stop]
                answer = output[None, max(start - unwanted, 0) : max(stop - unwanted, 0)]
                self._run(session, binding, tokens[None, start:stop], part, answer)
        except FAILURES as error:
            raise LocalFault(f"layers {self.span} failed at position {position}: {one_line(error)}") from error
        self._stepped(prefill=n > 1)
        return output[-logits:] if self._last and logits else output

    def step_rows(self, rows: Sequence[int], positions: Sequence[int], tokens: Ints, hidden: Floats | None) -> Floats:
        """See `engine.stage.Stage`. Rows that lie close to each other are computed together.

        A row in a gap between them is computed with them, for nothing: its position is the one behind all that it
        ever held, which whoever fills it next writes again before it is read.
        """
        session = self._opened()
        output: Floats = np.empty((len(rows), self.vocab if self._last else self.hidden), np.float32)
        where = np.array(positions, np.int32)
        self._first_wanted[0] = 0
        self._ever_filled[list(rows)] = np.maximum(self._ever_filled[list(rows)], where + 1)
        try:
            for run in row_runs(rows):
                self._run_near(session, run, rows, where, tokens, hidden, output)
        except FAILURES as error:
            raise LocalFault(f"layers {self.span} failed at a step of {len(rows)} rows: {one_line(error)}") from error
        self._stepped(prefill=False)
        return output

    def _run_near(
        self,
        session: onnxruntime.InferenceSession,
        run: list[int],
        rows: Sequence[int],
        positions: Ints,
        tokens: Ints,
        hidden: Floats | None,
        output: Floats,
    ) -> None:
        """The rows that the indices in `run` name, and those in the gaps between them."""
        first, b = rows[run[0]], rows[run[-1]] - rows[run[0]] + 1
        binding = self._binding(session, first, b, alone=b == 1)
        places: list[int] = []
        if run == list(range(run[0], run[0] + b)):  # neighbours in their order, as mostly, need no copies
            at = slice(run[0], run[0] + b)
            self._last_index[:b] = positions[at]
            given, states, answer = tokens[at], None if hidden is None else hidden[at], output[at]
        else:
            places = [rows[index] - first for index in run]
            self._last_index[:b] = self._ever_filled[first : first + b]
            self._last_index[places] = positions[run]
            given = _spread(tokens, run, places, b)
            states = None if hidden is None else _spread(hidden, run, places, b)
            answer = np.empty((b, output.shape[1]), np.float32)
        self._length[()] = self._last_index[:b].max() + 1
        self._run(session, binding, given[:, None], None if states is None else states[:, None], answer[:, None])
        if places:
            output[run] = answer[places]

    def save(self, row: int, start: int, stop: int) -> KvBlock:
        """See `engine.stage.Stage`: `[layers, 2, kv_heads, stop - start, head_dim]` float32."""
        self._opened()
        return self._slabs.save(row, start, stop)

    def load(self, row: int, start: int, block: KvBlock) -> None:
        """See `engine.stage.Stage`."""
        self._opened()
        self._slabs.load(row, start, block)
        self._ever_filled[row] = max(self._ever_filled[row], start + block.shape[3])

    def unpack(self, data: bytes, positions: int) -> KvBlock:
        """See `engine.stage.Stage`."""
        return self._slabs.unpack(data, positions)

    def release(self, row: int) -> None:
        """See `engine.stage.Stage`."""
        if self._session is not None:
            self._slabs.release(row)
            self._ever_filled[row] = 0
            if self._since_prefill < QUIET_STEPS:
                self._since_prefill = QUIET_STEPS
                trim_heap()

    def close(self) -> None:
        """See `engine.stage.Stage`."""
        if self._session is None:
            return
        self._session = None
        self._bindings.clear()
        self._slabs.close()
        trim_heap()

    def _opened(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise LocalFault(f"the stage of layers {self.span} is closed")
        return self._session

    def _stepped(self, *, prefill: bool) -> None:
        """Count decode steps since the last prefill; after a few of them its memory is not soon needed again."""
        if prefill:
            self._since_prefill = 0
        elif self._since_prefill < QUIET_STEPS:
            self._since_prefill += 1
            if self._since_prefill == QUIET_STEPS:
                trim_heap()

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        binding: onnxruntime.IOBinding,
        tokens: Ints,
        hidden: Floats | None,
        answer: Floats,
    ) -> None:
        """The graph over `tokens` `[b, n]` or `hidden` `[b, n, hidden]`, into `answer` `[b, wanted, …]`."""
        if self._first:
            binding.bind_cpu_input("tokens", tokens.astype(np.int64))
        else:
            binding.bind_cpu_input("hidden", np.ascontiguousarray(hidden, np.float32))
        if answer.size:
            binding.bind_output("output", "cpu", 0, np.float32, answer.shape, answer.ctypes.data)
        else:
            binding.bind_output("output")
        session.run_with_iobinding(binding)

    def _binding(
        self, session: onnxruntime.InferenceSession, first: int, rows: int, *, alone: bool
    ) -> onnxruntime.IOBinding:
        """The memory of neighbouring rows: the past is read and the present written in the same place.

        `alone`: this is a step of one position of one row.
        """
        alone = alone and self._paired
        key = first, rows, alone
        found = self._bindings.get(key)
        if found is not None:
            self._bindings.move_to_end(key)
            return found
        binding = session.io_binding()
        for index, layer in enumerate(range(self.span.start, self.span.stop)):
            for which, slab in zip("kv", self._slabs.layer(index, first, rows), strict=True):
                place = ("cpu", 0, np.float32, slab.shape, slab.ctypes.data)
                binding.bind_input(f"past_{which}_{layer}", *place)
                binding.bind_output(f"present_{which}_{layer}", *place)
        binding.bind_cpu_input("last_index", self._last_index[:rows])
        binding.bind_cpu_input("length", self._length)
        if self._last:
            binding.bind_cpu_input("first_wanted", self._first_wanted)
        if self._paired:
            binding.bind_cpu_input("kept", self._rows[:rows])
            binding.bind_cpu_input("computed", self._twice if alone else self._rows[:rows])
        self._bindings[key] = binding
        if len(self._bindings) > BINDINGS_MAX:
            self._bindings.popitem(last=False)
        return binding


def _spread(values: Array, run: list[int], places: list[int], rows: int) -> Array:
    """Of `values` those that `run` names, put at `places` among so many rows of zeros."""
    spread = np.zeros((rows, *values.shape[1:]), values.dtype)
    spread[places] = values[run]
    return spread
