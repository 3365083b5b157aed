"""Tiny stages opened from tiny checkpoints, and a chain of them run as one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from p2pgrid.checkpoints.gguf_import import read_gguf
from p2pgrid.engine.ort_stage import OrtStage, open_stage
from p2pgrid.engine.stage import Stage
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.manifest import Manifest
from p2pgrid.wire.tensors import Floats, Ints
from tests.tiny_gguf import write_tiny_gguf

SETTINGS = StageSettings(context_max=128, sessions_max=3, threads=2)


def tiny_model(folder: Path, **choices: Any) -> tuple[Path, Manifest]:
    path = write_tiny_gguf(folder / "tiny.gguf", **choices)
    return path, read_gguf(path, lambda done, total: None)[0]


def some_tokens(n: int, vocab: int = 320, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, vocab, n).astype(np.int32)


def chain(stages: Sequence[Stage], row: int, position: int, tokens: Ints, logits: int) -> Floats:
    """One step through all the stages."""
    hidden: Floats | None = None
    for stage in stages:
        hidden = stage.step(row, position, tokens, hidden, logits)
    assert hidden is not None
    return hidden


def in_chunks(stages: Sequence[Stage], row: int, tokens: Ints, sizes: Sequence[int], position: int = 0) -> Floats:
    """Steps of these sizes one after another; the logits after every position."""
    pieces = np.split(tokens, np.cumsum(sizes)[:-1])
    starts = position + np.cumsum([0, *sizes[:-1]])
    return np.concatenate(
        [chain(stages, row, int(at), piece, len(piece)) for at, piece in zip(starts, pieces, strict=True)]
    )


@contextmanager
def opened(
    path: Path, manifest: Manifest, *spans: Span, settings: StageSettings = SETTINGS
) -> Iterator[list[OrtStage]]:
    """Stages of these spans, by default one of the whole model; closed on the way out."""
    stages = [open_stage(path, manifest, span, settings) for span in spans or (Span(0, manifest.layers),)]
    try:
        yield stages
    finally:
        for stage in stages:
            stage.close()
