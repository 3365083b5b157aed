import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from p2pgrid.engine.ort_stage import OrtStage
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.tensors import Floats
from tests.engine.stages import in_chunks, opened
from tests.real_model import NAME, real_store

pytestmark = pytest.mark.model

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "smollm2_reference.json").read_text(encoding="utf-8"))
SCORED = [case for case in REFERENCE["cases"] if case["kind"] == "score"]


@pytest.fixture(scope="module")
def stages() -> Iterator[list[OrtStage]]:
    """Three stages of ten layers, as three machines would hold them."""
    model, manifest = real_store().manifest(NAME)
    spans = (Span(0, 10), Span(10, 20), Span(20, 30))
    settings = StageSettings(context_max=512, sessions_max=1)
    with opened(real_store().checkpoint(model), manifest, *spans, settings=settings) as stages:
        yield stages


def next_logprobs(logits: Floats, tokens: list[int]) -> Floats:
    """Of each token but the first, by the logits `[n, vocab]` after the one before."""
    shifted = logits[:-1] - logits[:-1].max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.take_along_axis(logprobs, np.array(tokens[1:])[:, None], axis=-1)[:, 0]


def test_three_stages_read_like_the_reference_in_float32(stages: list[OrtStage]) -> None:
    agreed, positions = 0, 0
    for case in SCORED:
        tokens = np.array(case["token_ids"], np.int32)
        sizes = [size for size in (128, 128, len(tokens) - 256) if size > 0] if len(tokens) > 256 else [len(tokens)]
        logits = in_chunks(stages, 0, tokens, sizes)
        agreed += int((logits.argmax(axis=-1) == np.array(case["top1"])).sum())
        positions += len(tokens)
        mean_nll = -float(next_logprobs(logits, case["token_ids"]).mean())
        assert mean_nll == pytest.approx(case["mean_nll"], rel=0.02), case["name"]
    assert positions > 300
    assert agreed >= 0.95 * positions


def test_decoding_token_by_token_reads_the_same(stages: list[OrtStage]) -> None:
    case = SCORED[0]
    tokens = np.array(case["token_ids"][:96], np.int32)
    logits = in_chunks(stages, 0, tokens, [32] + 64 * [1])
    expected = np.array(case["next_logprobs"][:95])
    found = next_logprobs(logits, case["token_ids"][:96])
    assert found.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert (logits.argmax(axis=-1) == np.array(case["top1"][:96])).mean() >= 0.93
