"""Drawing the next token: a pure function of logits, settings, seed and position.

Greedy is the likeliest token, the lower id on a tie. Otherwise Gumbel-max: add `-log(-log(u))` to each scaled
logit and take the largest, which draws from the softmax (Gumbel 1954; Maddison et al. 2014, "A* Sampling").
The uniform numbers come from Philox (Salmon et al. 2011) keyed by the seed, with the position in the highest
word of its counter, so that the streams of two positions never overlap and any peer draws the same token.
"""

import numpy as np
import numpy.typing as npt

from p2pgrid.errors import LocalFault
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats, Ints

Scores = npt.NDArray[np.float64]


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


def score(logits: Floats, targets: Ints) -> tuple[Ints, Floats]:
    """For `logits` `[n, vocab]` and `targets` `[n]`: the likeliest tokens `[n]` and the targets' log-probabilities."""
    top1 = logits.argmax(axis=-1).astype(np.int32)
    logprobs = np.empty(len(targets), np.float32)
    for i, target in enumerate(targets):  # a row at a time: float64 copies of a whole chunk would be 50 MB
        row = logits[i].astype(np.float64)
        peak = row.max()
        logprobs[i] = row[target] - peak - np.log(np.exp(row - peak).sum())
    return top1, logprobs


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
