"""What a request says of how tokens are drawn and when an answer ends, in our words."""

import secrets
from collections.abc import Sequence

from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.limits import GatewayLimits
from p2pgrid.gateway.schema import CommonRequest
from p2pgrid.wire.messages import BIASES_MAX, Sampling

TOP_P_MIN = 1e-9
"""Leaves the likeliest token alone, which is what a `top_p` of 0 asks for."""
SEEDS = 2**63
BIAS_MIN = -100.0
"""A token that has it is as good as never drawn."""


def sampling_of(body: CommonRequest, choice: int, ends: Sequence[int]) -> Sampling:
    """For choice number `choice`: each draws from a seed of its own. `ends` are the tokens that end an answer.

    Raises ApiError.
    """
    seed = secrets.randbits(63) if body.seed is None else (body.seed + choice) % SEEDS
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, TOP_P_MIN),
        top_k=body.top_k or 0,
        seed=seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_biases_of(body, ends if body.ignore_eos else ()),
    )


def stops_of(body: CommonRequest) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def choices_of(body: CommonRequest, prompts: int, limits: GatewayLimits) -> int:
    """How many answers to each of so many prompts. Raises ApiError."""
    wanted = body.n or 1
    if wanted * prompts > limits.choices_max:
        message = f"{prompts} prompt(s) with n {wanted}: a request gets at most {limits.choices_max} answers"
        raise ApiError(400, message, param="n", code="invalid_value")
    return wanted


def check_stream_options(body: CommonRequest) -> None:
    """Raises ApiError where they stand without a stream."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is only for stream: true", param="stream_options", code="invalid_value")


def _biases_of(body: CommonRequest, never: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Those asked for, and then those against the tokens that are `never` to be drawn."""
    given = body.logit_bias or {}
    if len(given) + len(never) > BIASES_MAX or not all(token.isascii() and token.isdecimal() for token in given):
        message = f"logit_bias maps token ids to numbers, {BIASES_MAX - len(never)} of them at most"
        raise ApiError(400, message, param="logit_bias", code="invalid_value")
    return (*((int(token), bias) for token, bias in given.items()), *((token, BIAS_MIN) for token in never))
