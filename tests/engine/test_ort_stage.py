import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.engine.ort_stage import QUIET_STEPS, OrtStage, open_stage
from p2pgrid.errors import LocalFault
from p2pgrid.ids import Span
from p2pgrid.settings import StageSettings
from p2pgrid.wire.manifest import Manifest
from tests.engine.llama_reference import LlamaReference
from tests.engine.stages import SETTINGS, chain, in_chunks, opened, some_tokens, tiny_model

# Weights round to their type in both; what differs is that the kernels round activations to 8 bits in blocks of
# 32, and other types than these once more to 8 bits.
FLOAT, EXACT, ROUNDED = 1e-5, 0.06, 0.08


@dataclass(frozen=True)
class Tiny:
    path: Path
    manifest: Manifest
    whole: OrtStage


@pytest.fixture(scope="module", params=["Q4_1", "mixed", "Q4_0"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """The usual model: 4-bit layers under an 8-bit embedding; one with another type for each matrix; 4 bits for all."""
    mixed = {"*": "Q8_0", "attn_v": "F16", "ffn_up": "Q4_0", "ffn_down": "Q4_1", "attn_output": "F32"}
    kinds = {"Q4_1": {"*": "Q4_1", "token_embd": "Q8_0"}, "mixed": mixed, "Q4_0": {"*": "Q4_0"}}
    path, manifest = tiny_model(tmp_path_factory.mktemp("tiny"), kinds=kinds[request.param])
    with opened(path, manifest) as [whole]:
        yield Tiny(path, manifest, whole)


@pytest.mark.parametrize(
    ("kinds", "tolerance"),
    [
        ("F32", FLOAT),
        ("F16", FLOAT),
        ("BF16", FLOAT),
        ("Q4_0", EXACT),
        ("Q4_1", EXACT),
        ("Q8_0", EXACT),
        ("Q5_0", ROUNDED),
        ("Q5_1", ROUNDED),
        ("Q4_K", ROUNDED),
        ({"*": "Q4_K", "token_embd": "Q6_K"}, ROUNDED),
        ({"*": "Q4_1", "token_embd": "F16"}, EXACT),
        ({"*": "Q4_1", "attn_v": "Q8_0", "ffn_up": "Q4_0", "ffn_down": "Q5_1"}, ROUNDED),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_agree_with_a_plain_forward_pass(tmp_path: Path, kinds: str, tolerance: float, tied: bool) -> None:
    k_quants = "_K" in str(kinds)
    path, manifest = tiny_model(tmp_path, kinds=kinds, tied=tied, **({"hidden": 256, "ffn": 256} if k_quants else {}))
    tokens = some_tokens(40)
    expected = LlamaReference(path).logits(tokens)
    with opened(path, manifest) as stages:
        prefilled = in_chunks(stages, 0, tokens, [40])
        decoded = in_chunks(stages, 1, tokens, [20] + 20 * [1])
    for found in (prefilled, decoded):
        assert np.sqrt(np.mean((found - expected) ** 2)) <= tolerance * expected.std()


def test_scaled_rotary_frequencies_are_followed(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path, kinds="F32", rope_freqs=True)
    tokens = some_tokens(40)
    with opened(path, manifest) as stages:
        found = in_chunks(stages, 0, tokens, [40])
    assert np.allclose(found, LlamaReference(path).logits(tokens), atol=1e-4)


@pytest.mark.parametrize("cuts", [[1], [2], [3], [1, 2, 3]], ids=str)
def test_a_split_equals_the_whole(tiny: Tiny, cuts: list[int]) -> None:
    ends = [0, *cuts, tiny.manifest.layers]
    spans = [Span(start, stop) for start, stop in pairwise(ends)]
    tokens, sizes = some_tokens(40), [17, 2, 13] + 8 * [1]
    with opened(tiny.path, tiny.manifest, *spans) as stages:
        assert np.array_equal(in_chunks(stages, 0, tokens, sizes), in_chunks([tiny.whole], 0, tokens, sizes))


@given(cuts=st.sets(st.integers(2, 38), max_size=6), row=st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_chunks_of_two_or_more_do_not_change_a_bit(tiny: Tiny, cuts: set[int], row: int) -> None:
    ends = [0, *sorted(cuts), 40]
    sizes = [stop - start for start, stop in pairwise(ends)]
    tokens = some_tokens(40)
    if 1 not in sizes:
        assert np.array_equal(in_chunks([tiny.whole], row, tokens, sizes), in_chunks([tiny.whole], row, tokens, [40]))


@given(kept=st.integers(1, 30), wrong=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_going_back_by_position_forgets_what_came_after(tiny: Tiny, kept: int, wrong: int) -> None:
    tokens = some_tokens(kept + 10)
    straight = in_chunks([tiny.whole], 0, tokens, [kept, 4, *6 * [1]])
    chain([tiny.whole], 1, 0, tokens[:kept], 0)
    chain([tiny.whole], 1, kept, some_tokens(wrong, seed=9), 0)
    again = in_chunks([tiny.whole], 1, tokens[kept:], [4, *6 * [1]], position=kept)
    assert np.array_equal(again, straight[kept:])


def test_rows_do_not_know_of_each_other(tiny: Tiny) -> None:
    texts = [some_tokens(30, seed=seed) for seed in range(3)]
    alone = [in_chunks([tiny.whole], 0, text, [10] + 20 * [1]) for text in texts]
    found = [[chain([tiny.whole], row, 0, text[:10], 10)] for row, text in enumerate(texts)]
    for position in range(10, 30):
        for row, text in enumerate(texts):
            found[row].append(chain([tiny.whole], row, position, text[position : position + 1], 1))
    for row in range(3):
        assert np.array_equal(np.concatenate(found[row]), alone[row])


def test_only_the_wanted_positions_get_logits(tiny: Tiny) -> None:
    tokens = some_tokens(20)
    everything = chain([tiny.whole], 0, 0, tokens, 20)
    assert chain([tiny.whole], 0, 0, tokens, 0).shape == (0, tiny.manifest.vocab)
    assert np.array_equal(chain([tiny.whole], 0, 0, tokens, 3), everything[-3:])
    assert np.array_equal(chain([tiny.whole], 0, 0, tokens, 1), everything[-1:])


@pytest.mark.parametrize("logits", [0, 1, 2, 3, 4, 5, 6, 33])
def test_a_step_that_is_run_in_two_parts_answers_as_one(tiny: Tiny, logits: int) -> None:
    tokens = some_tokens(40)
    everything = in_chunks([tiny.whole], 0, tokens, [40])
    answer = chain([tiny.whole], 1, 0, tokens[:33], logits)
    assert np.array_equal(answer, everything[33 - logits : 33])
    assert np.array_equal(chain([tiny.whole], 1, 33, tokens[33:], 7), everything[33:])


def test_an_answer_is_the_callers_own(tiny: Tiny) -> None:
    tokens = some_tokens(8)
    first = chain([tiny.whole], 0, 0, tokens, 8)
    before = first.copy()
    chain([tiny.whole], 0, 0, some_tokens(8, seed=5), 8)
    assert np.array_equal(first, before)
    assert first.flags.writeable


def test_the_number_of_threads_does_not_change_a_bit(tiny: Tiny) -> None:
    tokens, sizes = some_tokens(40), [30] + 10 * [1]
    with opened(tiny.path, tiny.manifest, settings=msgspec.structs.replace(SETTINGS, threads=1)) as stages:
        assert np.array_equal(in_chunks(stages, 0, tokens, sizes), in_chunks([tiny.whole], 0, tokens, sizes))


def test_the_last_position_of_the_context_can_be_used(tiny: Tiny) -> None:
    tokens = some_tokens(SETTINGS.context_max)
    assert tiny.whole.context_max == SETTINGS.context_max
    chain([tiny.whole], 0, 0, tokens[:-1], 0)
    assert np.isfinite(chain([tiny.whole], 0, len(tokens) - 1, tokens[-1:], 1)).all()


def test_the_context_is_no_longer_than_the_models_own(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path, context=48)
    with opened(path, manifest) as [stage]:
        assert stage.context_max == 48


def test_release_returns_memory_and_leaves_other_rows_alone(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path, kinds="Q8_0", context=4096, hidden=128, heads=2, kv_heads=2)
    tokens = some_tokens(4096)
    me = psutil.Process(os.getpid())
    with opened(path, manifest, settings=StageSettings(context_max=4096, sessions_max=2, threads=2)) as [stage]:
        for start in range(0, 4096, 512):
            chain([stage], 0, start, tokens[start : start + 512], 0)
        straight = in_chunks([stage], 1, tokens[:40], [30, 10])
        full_bytes = me.memory_info().rss
        stage.release(0)
        returned_bytes = full_bytes - me.memory_info().rss
        row_bytes = 4 * 2 * 4096 * 128 * 4
        assert returned_bytes > 0.9 * row_bytes
        assert np.array_equal(in_chunks([stage], 0, tokens[:40], [30, 10]), straight)
        assert np.array_equal(chain([stage], 1, 30, tokens[30:40], 10), straight[30:])


def test_a_closed_stage_says_so_and_closes_again(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path)
    with opened(path, manifest) as [stage]:
        stage.close()
        stage.release(0)
        with pytest.raises(LocalFault, match="closed"):
            chain([stage], 0, 0, some_tokens(4), 1)


def test_a_failure_of_the_runtime_is_a_local_fault(tiny: Tiny) -> None:
    with opened(tiny.path, tiny.manifest, Span(1, 2)) as [stage]:
        with pytest.raises(LocalFault, match="layers 1:2 failed at position 0"):
            stage.step(0, 0, some_tokens(4), np.zeros((4, 3), np.float32), 0)
        good = np.zeros((4, tiny.manifest.hidden), np.float32)
        assert stage.step(0, 0, some_tokens(4), good, 0).shape == good.shape


def test_a_span_beyond_the_model_and_an_unknown_architecture_are_refused(tiny: Tiny) -> None:
    with pytest.raises(LocalFault, match="4 layers"):
        open_stage(tiny.path, tiny.manifest, Span(2, 5), SETTINGS)
    other = msgspec.structs.replace(tiny.manifest, architecture="mamba")
    with pytest.raises(LocalFault, match="mamba"):
        open_stage(tiny.path, other, Span(0, 2), SETTINGS)


def test_no_room_for_temporary_files_is_a_local_fault(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tiny.path.parent / "nowhere"))
    with pytest.raises(LocalFault, match=r"cannot open layers 0:2 .*nowhere"):
        open_stage(tiny.path, tiny.manifest, Span(0, 2), SETTINGS)


def test_opening_leaves_no_temporary_files(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with opened(tiny.path, tiny.manifest) as stages:
        assert not list(tmp_path.iterdir())
        assert np.array_equal(
            in_chunks(stages, 0, some_tokens(9), [9]), in_chunks([tiny.whole], 0, some_tokens(9), [9])
        )


def test_opening_tells_how_far_it_is_and_can_be_stopped(tiny: Tiny) -> None:
    heard: list[tuple[int, int]] = []
    open_stage(tiny.path, tiny.manifest, Span(0, 2), SETTINGS, lambda done, total: heard.append((done, total))).close()
    assert heard == sorted(heard) and heard[-1][0] == heard[-1][1] == heard[0][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_stage(tiny.path, tiny.manifest, Span(0, 2), SETTINGS, stop)


def test_what_a_prefill_took_goes_back_after_a_few_decode_steps(tmp_path: Path) -> None:
    path, manifest = tiny_model(tmp_path, kinds="Q8_0", context=2048, hidden=128, heads=2, kv_heads=2, ffn=4096)
    me = psutil.Process(os.getpid())
    with opened(path, manifest, settings=StageSettings(context_max=2048, sessions_max=1, threads=2)) as [stage]:
        chain([stage], 0, 0, some_tokens(8), 0)
        chain([stage], 0, 0, some_tokens(1024), 0)
        for position in range(1024, 1024 + QUIET_STEPS - 1):
            chain([stage], 0, position, some_tokens(1), 1)
        busy_bytes = me.memory_info().rss
        chain([stage], 0, 1024 + QUIET_STEPS - 1, some_tokens(1), 1)
        assert me.memory_info().rss < busy_bytes
