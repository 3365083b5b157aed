"""Drawing the next token: a pure function of logits, settings, seed, position, and the answer so far.

Greedy is the likeliest token, the lower id on a tie. Otherwise Gumbel-max: add `-log(-log(u))` to each scaled
logit and take the largest, which draws from the softmax (Gumbel 1954; Maddison et al. 2014, "A* Sampling").
The uniform numbers come from Philox (Salmon et al. 2011) keyed by the seed, with the position in the highest
word of its counter, so that the streams of two positions never overlap and any peer draws the same token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pgrid.errors import LocalFault
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats, Ints

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Logprobs:
    """Natural log-probabilities of a token and of the likeliest ones, the likeliest first."""

    chosen: float
    top_ids: Ints
    """`[k]`"""
    top: Floats
    """`[k]`"""


@dataclass(frozen=True)
class Scored:
    """How likely `n` tokens of a given text were, and what was likelier."""

    top1: Ints
    """`[n]`"""
    next_logprobs: Floats
    """`[n]`"""
    top_ids: Ints
    """`[n, k]`, the likeliest first."""
    top_logprobs: Floats
    """`[n, k]`"""


def sample(logits: Floats, sampling: Sampling, position: int) -> int:
    """The token for `position` from its logits `[vocab]`. Raises LocalFault when the best of them is not finite."""
    best = int(np.argmax(logits))  # the first that is not a number, if there is one
    peak = logits[best]
    if not np.isfinite(peak):
        raise LocalFault("the logits are not finite: the weights are damaged, or the stage before sent nonsense")
    if sampling.temperature == 0:
        return best
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best fall to minus infinity, as they should
        scores = (logits.astype(np.float64) - peak) / sampling.temperature
    kept = _kept(scores, sampling)
    noise = _gumbel(len(logits), sampling.seed, position)
    return int(kept[np.argmax(scores[kept] + noise[kept])])


def adjusted(logits: Floats, sampling: Sampling, answer: Sequence[int]) -> Floats:
    """The logits `[vocab]` with bias, and with penalties for the tokens that `answer` has already: a copy.

    `logit[t] += bias[t] - presence * (n[t] > 0) - frequency * n[t]`, where `n[t]` is how often `t` stands in `answer`:
    as in OpenAI's API. A bias for a token that the model does not have does nothing.
    """
    found = logits.copy()
    for token, bias in dict(sampling.logit_bias).items():
        if token < len(found):
            found[token] += np.float32(bias)
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = np.unique(np.asarray(answer), return_counts=True)
        found[tokens] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
    return found


def restricted(logits: Floats, allowed: npt.NDArray[np.bool_]) -> Floats:
    """The logits `[vocab]` of tokens that are `allowed` `[n]`; the rest, those behind the first n too, cannot come."""
    found = np.full_like(logits, -np.inf)
    n = min(len(logits), len(allowed))
    np.copyto(found[:n], logits[:n], where=allowed[:n])
    return found


def adjusts(sampling: Sampling) -> bool:
    """Whether `adjusted` would change anything."""
    return bool(sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty)


def logprobs(logits: Floats, token: int, top: int) -> Logprobs:
    """For the logits `[vocab]` as they are, at temperature 1."""
    peak, total = _normalizers(logits)
    top_ids = likeliest(logits, top)
    top_logprobs = logits[top_ids].astype(np.float64) - peak - total
    return Logprobs(float(np.float64(logits[token]) - peak - total), top_ids, top_logprobs.astype(np.float32))


def score(logits: Floats, targets: Ints, top: int = 0) -> Scored:
    """For `logits` `[n, vocab]` and the tokens `targets` `[n]` that really follow."""
    n, k = len(targets), min(top, logits.shape[-1])
    top1 = logits.argmax(axis=-1).astype(np.int32)
    next_logprobs = np.empty(n, np.float32)
    top_ids, top_logprobs = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for i, target in enumerate(targets):  # a row at a time: float64 copies of a whole chunk would be 50 MB
        peak, total = _normalizers(logits[i])
        next_logprobs[i] = np.float64(logits[i, target]) - peak - total
        if k:
            top_ids[i] = likeliest(logits[i], k)
            top_logprobs[i] = logits[i, top_ids[i]].astype(np.float64) - peak - total
    return Scored(top1, next_logprobs, top_ids, top_logprobs)


def likeliest(logits: Floats, count: int) -> Ints:
    """The ids of so many of the largest of `logits` `[vocab]`, the largest first; of equals the lower id."""
    count = min(count, len(logits))
    if not count:
        return np.empty(0, np.int32)
    least = np.partition(logits, -count)[-count]
    found = np.flatnonzero(logits >= least)
    return found[np.argsort(-logits[found], kind="stable")][:count].astype(np.int32)


def _normalizers(logits: Floats) -> tuple[np.float64, np.float64]:
    """What to take from logits, one after the other, for log-probabilities: the largest, then log of sum of exp."""
    work = logits.astype(np.float64)
    peak = work.max()
    work -= peak
    np.exp(work, out=work)
    return peak, np.log(work.sum())


def _kept(scores: Scores, sampling: Sampling) -> npt.NDArray[np.int64]:
    """Token ids, in rising order, that top-k and then top-p leave over; never empty."""
    if sampling.top_k == 0 and sampling.top_p >= 1:
        return np.arange(len(scores))
    best_first = np.argsort(-scores, kind="stable")
    if sampling.top_k:
        best_first = best_first[: sampling.top_k]
    if sampling.top_p < 1:
        weights = np.exp(scores[best_first] - scores[best_first[0]])
        before = np.cumsum(weights) - weights
        best_first = best_first[before < sampling.top_p * weights.sum()]
    return np.sort(best_first)


def _gumbel(vocab: int, seed: int, position: int) -> Scores:
    """Standard Gumbel noise `[vocab]`."""
    stream = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position]))
    uniform = stream.random(vocab)
    tiny = np.finfo(np.float64).tiny  # random() may give exactly 0
    noise: Scores = -np.log(-np.log(np.maximum(uniform, tiny)))
    return noise
