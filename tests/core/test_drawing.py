"""What the last stage draws depends on the answer so far, and on nothing else that happened."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.sampling import adjusted
from p2pgrid.wire.messages import Sampling
from p2pgrid.wire.tensors import Floats

VOCAB = 12
bounded = settings(max_examples=100, deadline=None)
tokens = st.integers(0, VOCAB - 1)
texts = st.lists(tokens, min_size=1, max_size=30)
penalties = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 2.0])
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 3]),
    seed=st.integers(0, 9),
    presence_penalty=penalties,
    frequency_penalty=penalties,
    logit_bias=st.lists(st.tuples(st.integers(0, 2 * VOCAB), st.floats(-100, 100)), max_size=4).map(tuple),
)


def some_logits(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=VOCAB).astype(np.float32)


@given(samplings, texts)
@bounded
def test_bias_and_penalties_are_added_as_openai_does(sampling: Sampling, answer: list[int]) -> None:
    logits = some_logits(1)
    before = logits.copy()
    found = adjusted(logits, sampling, answer)
    assert np.array_equal(logits, before), "the logits are needed as they are for log-probabilities"
    bias = dict(sampling.logit_bias)
    for token in range(VOCAB):
        count = answer.count(token)
        expected = logits[token] + bias.get(token, 0.0)
        expected -= sampling.presence_penalty * (count > 0) + sampling.frequency_penalty * count
        assert np.isclose(found[token], expected, atol=1e-4)


@given(samplings, texts, st.integers(0, 12), st.lists(st.tuples(st.integers(0, 30), texts), max_size=8))
@bounded
def test_steps_that_came_twice_or_were_taken_back_leave_no_trace(
    sampling: Sampling, text: list[int], prompt_length: int, detours: list[tuple[int, list[int]]]
) -> None:
    """Whatever ran before, what counts is the text that the row holds in the end, in whatever steps it came."""
    straight = Drawer(sampling, prompt_length=prompt_length)
    straight.saw(0, text)
    crooked = Drawer(sampling, prompt_length=prompt_length)
    held = 0
    for position, some in detours:
        crooked.saw(min(position, held), some)
        held = min(position, held) + len(some)
    first = min(held, len(text)) // 2
    crooked.saw(0, text[:first])
    for position in range(first, len(text)):
        crooked.saw(position, [text[position]])
    again = len(text) // 2
    crooked.saw(again, text[again:])
    assert crooked.draw(some_logits(2), len(text)) == straight.draw(some_logits(2), len(text))


def test_the_prompt_is_not_punished() -> None:
    punished = Sampling(presence_penalty=2.0)
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    drawer = Drawer(punished, prompt_length=2)
    drawer.saw(0, [0, 0])
    assert drawer.draw(logits, 2).token == 0
    drawer.saw(2, [0])
    assert drawer.draw(logits, 3).token == 1


def test_log_probabilities_are_those_of_the_model_whatever_is_added() -> None:
    logits = some_logits(3)
    likely = int(np.argmax(logits))
    biased = Drawer(Sampling(logit_bias=((likely, -100.0),)), logprobs=VOCAB).draw(logits, 0)
    plain = Drawer(Sampling(), logprobs=VOCAB).draw(logits, 0)
    assert biased.logprobs and plain.logprobs and biased.token != plain.token == likely
    assert biased.logprobs.top.tolist() == plain.logprobs.top.tolist()
    assert biased.logprobs.top_ids[0] == likely
