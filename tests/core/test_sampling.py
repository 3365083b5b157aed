import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.sampling import _gumbel, _kept, likeliest, logprobs, sample, score
from p2pgrid.errors import LocalFault
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats

bounded = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**63 - 1)
positions = st.integers(0, 2**31 - 1)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 50),
    seed=seeds,
)

warm_samplings = st.builds(
    Sampling,
    temperature=st.floats(0.01, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 50),
    seed=seeds,
)


def _floats(values: Sequence[float]) -> Floats:
    return np.array(values, np.float32)


logits_of_any_size = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40).map(
    _floats
)
logits_with_ties = st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(_floats)


def _softmax(scores: npt.NDArray[np.float64]) -> list[float]:
    peak = float(scores.max())
    weights = [math.exp(float(s) - peak) for s in scores]
    return [w / math.fsum(weights) for w in weights]


@given(logits_with_ties, st.integers(0, 50), seeds, positions)
@bounded
def test_greedy_is_the_likeliest_token_and_the_lower_id_on_a_tie(
    logits: Floats, top_k: int, seed: int, position: int
) -> None:
    values = logits.tolist()
    assert sample(logits, Sampling(0.0, 0.5, top_k, seed), position) == values.index(max(values))


@given(logits_of_any_size | logits_with_ties, samplings, positions)
@bounded
def test_the_same_inputs_give_the_same_token_of_the_vocabulary(
    logits: Floats, sampling: Sampling, position: int
) -> None:
    token = sample(logits, sampling, position)
    assert 0 <= token < len(logits)
    assert sample(logits.copy(), sampling, position) == token


@given(logits_with_ties, st.floats(0.01, 100), seeds, positions)
@bounded
def test_one_candidate_is_the_same_as_greedy(logits: Floats, temperature: float, seed: int, position: int) -> None:
    greedy = sample(logits, Sampling(), position)
    assert sample(logits, Sampling(temperature, 1.0, 1, seed), position) == greedy
    assert sample(logits, Sampling(temperature, 1e-12, 0, seed), position) == greedy


@given(logits_with_ties, warm_samplings, st.integers(0, 2**30))
@bounded
def test_no_token_outside_the_filters_is_drawn(logits: Floats, sampling: Sampling, first: int) -> None:
    best_first = np.argsort(-logits, kind="stable").tolist()
    kept = best_first[: sampling.top_k or None]
    chances = _softmax(logits[kept].astype(np.float64) / sampling.temperature)
    # The last token kept has less than `top_p` before it; sums of floats may be off in their last digits.
    allowed = {token for i, token in enumerate(kept) if math.fsum(chances[:i]) < sampling.top_p + 1e-9}
    assert {sample(logits, sampling, first + i) for i in range(30)} <= allowed


@given(logits_with_ties, warm_samplings)
@bounded
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits: Floats, sampling: Sampling) -> None:
    scores = logits.astype(np.float64) / sampling.temperature
    kept = _kept(scores, Sampling(sampling.temperature, sampling.top_p))
    chances = _softmax(scores)
    mass = math.fsum(chances[token] for token in kept)
    least = min(chances[token] for token in kept)
    assert len(kept) >= 1
    assert mass >= sampling.top_p - 1e-9
    assert mass - least < sampling.top_p + 1e-9
    assert all(chances[token] <= least for token in set(range(len(logits))) - set(kept.tolist()))


def test_a_set_that_reaches_the_mass_exactly_takes_no_token_more() -> None:
    assert _kept(np.zeros(4), Sampling(1.0, 0.5)).tolist() == [0, 1]
    assert _kept(np.zeros(4), Sampling(1.0, 0.51)).tolist() == [0, 1, 2]


@given(logits_of_any_size, warm_samplings)
@bounded
def test_the_filters_keep_at_least_one_token_and_at_most_top_k(logits: Floats, sampling: Sampling) -> None:
    scores = logits.astype(np.float64)
    kept = _kept(scores, sampling).tolist()
    assert 1 <= len(kept) <= (sampling.top_k or len(logits))
    assert kept == sorted(set(kept))
    assert int(scores.argmax()) in kept


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize("values", [[-1e30, 0.0, -1e30], [-3e38, 3e38], [-1e30, -2e30], [-math.inf, 1.0], [0.0]])
def test_extreme_logits_and_temperatures_draw_the_only_likely_token(
    values: list[float], top_p: float, temperature: float
) -> None:
    logits = _floats(values)
    drawn = {sample(logits, Sampling(temperature, top_p, 0, seed), 9) for seed in range(20)}
    assert drawn == {int(logits.argmax())}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, 0.5), Sampling(1.0, 1.0, 2)])
def test_logits_that_are_no_numbers_are_refused(bad: float, sampling: Sampling) -> None:
    with pytest.raises(LocalFault, match="not finite"):
        sample(_floats([1.0, bad, 2.0]), sampling, 3)


def test_the_noise_of_two_positions_shares_no_value() -> None:
    noise = [_gumbel(10_000, 7, position) for position in (0, 1, 2, 2**31 - 1)]
    values = np.concatenate(noise)
    assert len(np.unique(values)) == len(values)


def test_the_position_as_a_plain_counter_would_have_shared_noise() -> None:
    """Why the position stands in the highest word: Philox counts the lowest one up, one for four numbers."""
    here, next_position = (np.random.Generator(np.random.Philox(key=7, counter=p)).random(100) for p in (5, 6))
    assert here[4:].tolist() == next_position[:-4].tolist()


@given(seeds, seeds, positions)
@bounded
def test_another_seed_gives_other_noise(seed: int, other: int, position: int) -> None:
    shared = set(_gumbel(50, seed, position).tolist()) & set(_gumbel(50, other, position).tolist())
    assert len(shared) == (50 if seed == other else 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=1),
        Sampling(0.7, seed=2**63 - 1),
        Sampling(2.5, seed=3),
        Sampling(1.0, top_k=3, seed=4),
        Sampling(1.0, top_p=0.8, seed=5),
    ],
)
def test_draws_follow_the_softmax(sampling: Sampling) -> None:
    logits = _floats([0.3, 2.0, -1.0, 1.2, 0.0, 1.9, -0.4, 0.8])
    draws = 4000
    scores = logits.astype(np.float64) / sampling.temperature
    kept = _kept(scores, sampling)
    chances = _softmax(scores[kept])
    counts = Counter(sample(logits, sampling, position) for position in range(draws))
    assert counts.total() == draws
    assert set(counts) == set(kept.tolist())
    chi_square = sum(
        (counts[token] - draws * chance) ** 2 / (draws * chance)
        for token, chance in zip(kept.tolist(), chances, strict=True)
    )
    # 24.3 is passed by chance once in a thousand for 7 degrees of freedom; the draws are fixed.
    assert chi_square < 24.3


def test_the_draws_are_the_recorded_ones() -> None:
    """Peers of any version must draw the same token: a change here is a change of the protocol."""
    logits = _floats([(i * 7919 % 1009) / 100 for i in range(1000)])
    recorded = {
        Sampling(): [765, 765, 765, 765, 765, 765],
        Sampling(1.0): [27, 443, 343, 330, 132, 715],
        Sampling(0.8, 0.95, 40, 2**63 - 1): [66, 587, 653, 587, 343, 132],
        Sampling(1.5, 0.9, 0, 42): [370, 106, 661, 543, 165, 713],
    }
    for sampling, tokens in recorded.items():
        assert [sample(logits, sampling, position) for position in (0, 1, 2, 77, 8191, 2**31 - 1)] == tokens


@given(st.data(), st.integers(1, 4), st.integers(1, 30))
@bounded
def test_scores_are_the_log_softmax_in_double_precision(data: st.DataObject, n: int, vocab: int) -> None:
    value = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-20, 20, width=32)
    rows = data.draw(st.lists(st.lists(value, min_size=vocab, max_size=vocab), min_size=n, max_size=n))
    targets = data.draw(st.lists(st.integers(0, vocab - 1), min_size=n, max_size=n))
    logits = np.array(rows, np.float32)
    scored = score(logits, np.array(targets, np.int32))
    top1, logprobs = scored.top1, scored.next_logprobs
    assert top1.dtype.name == "int32"
    assert logprobs.dtype.name == "float32"
    assert top1.tolist() == [row.index(max(row)) for row in logits.tolist()]
    for row, target, logprob in zip(logits.tolist(), targets, logprobs.tolist(), strict=True):
        peak = max(row)
        exact = row[target] - peak - math.log(math.fsum(math.exp(x - peak) for x in row))
        assert logprob == pytest.approx(exact, rel=1e-6, abs=1e-6)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30), st.integers(0, 40))
@bounded
def test_the_likeliest_come_first_and_of_equals_the_lower_id(values: list[float], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert likeliest(np.array(values, np.float32), count).tolist() == expected


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30), st.data())
@bounded
def test_a_drawn_token_is_as_likely_as_a_scored_one(values: list[float], data: st.DataObject) -> None:
    logits = np.array(values, np.float32)
    token = data.draw(st.integers(0, len(values) - 1))
    count = data.draw(st.integers(0, 20))
    drawn = logprobs(logits, token, count)
    scored = score(logits[None], np.array([token], np.int32), count)
    assert np.float32(drawn.chosen) == scored.next_logprobs[0]
    assert drawn.top_ids.tolist() == scored.top_ids[0].tolist() == likeliest(logits, count).tolist()
    assert drawn.top.tolist() == scored.top_logprobs[0].tolist()
    if count:
        assert drawn.top[0] >= np.float32(drawn.chosen)
