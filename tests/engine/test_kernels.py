"""What graphs rely on: that a row of a matrix product does not depend on its neighbours."""

import numpy as np
import pytest

from p2pgrid.checkpoints.blocks import Blocks
from p2pgrid.engine import graph
from p2pgrid.engine.kernels import rows_agree
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from tests.engine.stages import chain, opened, some_tokens, tiny_model


def test_a_row_alone_is_a_row_among_others_with_eight_bits() -> None:
    """Were it not so on some machine, there would be nothing to fall back to."""
    assert rows_agree(8)


def test_where_four_bits_disagree_a_model_is_computed_with_eight(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"*": "Q4_1", "token_embd": "Q8_0"}
    path, manifest = tiny_model(tmp_path_factory.mktemp("tiny"), kinds=kinds)
    settings = StageSettings(context_max=64, sessions_max=2, threads=1)
    widened: list[int] = []

    def widen(blocks: Blocks) -> Blocks:
        widened.append(blocks.bits)
        return original(blocks)

    original = Blocks.widened
    tokens = some_tokens(12, seed=1)
    answers = []
    for agree in (True, False):
        monkeypatch.setattr(graph, "rows_agree", lambda bits, agree=agree: agree or bits == 8)
        monkeypatch.setattr(Blocks, "widened", widen)
        with opened(path, manifest, Span(0, 2), Span(2, 4), settings=settings) as stages:
            answers.append(chain(stages, 0, 0, tokens, 12))
    assert set(widened) == {4}
    assert np.abs(answers[0]).max() > 1
    assert np.allclose(*answers, atol=0.1)  # other kernels, other last bits; other weights would be far off
