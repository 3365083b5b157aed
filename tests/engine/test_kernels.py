"""What graphs rely on: that a row of a matrix product does not depend on its neighbours."""

from pathlib import Path

import numpy as np
import pytest

from p2pgrid.checkpoints.blocks import Blocks
from p2pgrid.engine import graph
from p2pgrid.engine.kernels import rows_that_agree
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.tensors import Floats
from tests.engine.stages import chain, opened, some_tokens, tiny_model


def test_a_row_alone_is_a_row_among_others_with_eight_bits() -> None:
    """Were it not so on some machine, there would be nothing to fall back to."""
    assert rows_that_agree(8) == 1


def test_two_rows_are_company_enough_with_four_bits() -> None:
    """On the processors this was tried on; where it is not so, codes get eight bits."""
    assert rows_that_agree(4) in (1, 2)


@pytest.mark.parametrize(("agree", "widens"), [(1, False), (2, False), (0, True)])
def test_a_row_is_computed_twice_or_with_eight_bits_where_four_disagree(
    agree: int, widens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"*": "Q4_1", "token_embd": "Q8_0"}
    path, manifest = tiny_model(tmp_path, kinds=kinds)
    settings = StageSettings(context_max=64, sessions_max=2, threads=1)
    widened: list[int] = []

    def widen(blocks: Blocks) -> Blocks:
        widened.append(blocks.bits)
        return original(blocks)

    original = Blocks.widened
    tokens = some_tokens(12, seed=1)

    def answer(agree: int) -> Floats:
        monkeypatch.setattr(graph, "rows_that_agree", lambda bits: 1 if bits == 8 else agree)
        with opened(path, manifest, Span(0, 2), Span(2, 4), settings=settings) as stages:
            inputs = {given.name for stage in stages for given in stage._opened().get_inputs()}
            assert ("kept" in inputs) is (agree == 2)
            return np.concatenate([chain(stages, 0, 0, tokens[:11], 11), chain(stages, 0, 11, tokens[11:], 1)])

    as_it_is = answer(1)
    assert np.abs(as_it_is).max() > 1
    monkeypatch.setattr(Blocks, "widened", widen)
    other = answer(agree)
    assert set(widened) == ({4} if widens else set())
    assert np.allclose(as_it_is, other, atol=0.1)  # other kernels, other last bits; other weights would be far off
