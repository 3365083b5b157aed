"""What the formats of the wire do to a real model's predictions."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from p2pgrid.engine.ort_stage import OrtStage
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.hidden import pack_hidden, unpack_hidden
from p2pgrid.wire.messages import WireFormat
from p2pgrid.wire.tensors import Floats, Ints
from tests.engine.stages import opened
from tests.real_model import NAME, real_store

pytestmark = pytest.mark.model

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text(encoding="utf-8"))
CHUNK = 128


@pytest.fixture(scope="module")
def stages() -> Iterator[list[OrtStage]]:
    """Three stages of ten layers, as three machines would hold them."""
    model, manifest = real_store().manifest(NAME)
    spans = (Span(0, 10), Span(10, 20), Span(20, 30))
    settings = StageSettings(context_max=512, sessions_max=1)
    with opened(real_store().checkpoint(model), manifest, *spans, settings=settings) as stages:
        yield stages


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_three_stages_that_talk_in_a_smaller_format_read_like_the_reference_in_float32(
    form: WireFormat, stages: list[OrtStage]
) -> None:
    case = next(case for case in REFERENCE["cases"] if case["kind"] == "score")
    tokens = np.array(case["token_ids"], np.int32)
    first, *others = stages

    def step(position: int, piece: Ints) -> Floats:
        hidden = first.step(0, position, piece, None, 0)
        for stage in others:
            used, data = pack_hidden(hidden, form)
            assert used == form, "what the first token reaches in mid-model fits"
            hidden = stage.step(0, position, piece, unpack_hidden(data, used, *hidden.shape), len(piece))
        return hidden

    logits = np.concatenate([step(at, tokens[at : at + CHUNK]) for at in range(0, len(tokens), CHUNK)])
    assert (logits.argmax(axis=-1) == np.array(case["top1"])).mean() >= 0.94
    shifted = logits[:-1] - logits[:-1].max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    mean_nll = -float(np.take_along_axis(logprobs, tokens[1:, None], axis=-1).mean())
    assert mean_nll == pytest.approx(case["mean_nll"], rel=0.02)
