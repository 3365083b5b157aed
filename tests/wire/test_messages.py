from typing import Any

import msgpack
import msgspec
import pytest

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import Span
from p2pgrid.net.exchange import EXCHANGE_BYTES_MAX
from p2pgrid.wire.adverts import (
    ADVERT_BYTES_MAX,
    ADVERTS_PER_MESSAGE_MAX,
    DELAYS_MAX,
    LOST_MAX,
    Advert,
    Adverts,
    SignedAdvert,
)
from p2pgrid.wire.codec import decode, encode, frame
from p2pgrid.wire.fields import ADDRESSES_MAX
from p2pgrid.wire.messages import BIASES_MAX, LOGPROBS_MAX, ROUTE_HOPS_MAX, SCHEMA_CHARS_MAX, TOKENS_PER_STEP_MAX
from p2pgrid.wire.signing import Identity
from p2pgrid.wire.transfer_messages import BLOB_PIECE_BYTES_MAX
from tests.wire.samples import ADVERT, ADVERT_MESSAGES, BLOB_MESSAGES, OPEN, PROTOCOLS

SAMPLES = {type(message).__name__: (protocol, message) for protocol, messages in PROTOCOLS for message in messages}
HOP = msgpack.unpackb(encode(OPEN))["route"][0]
SIGNED = msgpack.unpackb(encode(ADVERT_MESSAGES[1]))["adverts"][0]
LOST_PEER = msgpack.unpackb(encode(ADVERT_MESSAGES[1]))["lost"][0]


def with_field(kind: str, field: str, value: Any) -> Any:
    """The sample message of this kind, one field of it replaced, decoded."""
    protocol, message = SAMPLES[kind]
    plain = msgpack.unpackb(encode(message))
    assert field in plain, f"{kind} has no field {field}"
    return decode(msgpack.packb(plain | {field: value}), protocol)


# What is just allowed, and what is just not.
LIMITS: list[tuple[str, str, Any, Any]] = [
    ("Hello", "agent", "é" * 500, "é" * 501),
    ("Hello", "window_bytes", 2**31 - 1, 2**31),
    ("Ping", "nonce", 0, -1),
    ("Credit", "nbytes", 2**31 - 1, 2**31),
    ("Open", "session", "f" * 32, "F" * 32),
    ("Open", "session", "0" * 32, "0" * 32 + "\n"),
    ("Open", "model", "0" * 64, "0" * 63),
    ("Open", "route", [HOP] * ROUTE_HOPS_MAX, [HOP] * (ROUTE_HOPS_MAX + 1)),
    ("Open", "route", [HOP], []),
    ("Open", "route", [HOP | {"span": [0, 1024]}], [HOP | {"span": [0, 1025]}]),
    ("Open", "route", [HOP | {"span": [3, 4]}], [HOP | {"span": [4, 4]}]),
    ("Open", "route", [HOP | {"addresses": ["/"] * 16}], [HOP | {"addresses": ["/"] * 17}]),
    ("Open", "route", [HOP | {"addresses": ["/" * 256]}], [HOP | {"addresses": [""]}]),
    ("Open", "route", [HOP | {"peer": "1" * 40}], [HOP | {"peer": "0" * 40}]),
    ("Open", "sampling", {"temperature": 100}, {"temperature": float("nan")}),
    ("Open", "sampling", {"top_p": 1}, {"top_p": 0}),
    ("Open", "sampling", {"seed": 2**63 - 1}, {"seed": 2**63}),
    ("Open", "sampling", {"presence_penalty": -2}, {"presence_penalty": -2.01}),
    ("Open", "sampling", {"frequency_penalty": 2}, {"frequency_penalty": float("nan")}),
    ("Open", "sampling", {"logit_bias": [[1, 100]] * BIASES_MAX}, {"logit_bias": [[1, 100]] * (BIASES_MAX + 1)}),
    ("Open", "sampling", {"logit_bias": [[2**31 - 1, -100]]}, {"logit_bias": [[-1, 0]]}),
    ("Open", "sampling", {"logit_bias": [[1, -100]]}, {"logit_bias": [[1, -101]]}),
    ("Open", "sampling", {"logit_bias": [[1, 0.5]]}, {"logit_bias": [[1, float("nan")]]}),
    ("Open", "prompt_length", 2**31 - 1, -1),
    ("Open", "json_schema", " " * SCHEMA_CHARS_MAX, " " * (SCHEMA_CHARS_MAX + 1)),
    ("Open", "stop_tokens", [1] * 64, [1] * 65),
    ("Open", "logprobs", LOGPROBS_MAX, LOGPROBS_MAX + 1),
    ("Open", "logprobs", None, -1),
    ("Token", "logprob", None, "-0.5"),
    ("Token", "top_ids", bytes(4 * LOGPROBS_MAX), bytes(4 * LOGPROBS_MAX + 1)),
    ("Token", "top_logprobs", bytes(4 * LOGPROBS_MAX), bytes(4 * LOGPROBS_MAX + 1)),
    ("Scores", "top_ids", bytes(4 * 512 * LOGPROBS_MAX), bytes(4 * 512 * LOGPROBS_MAX + 1)),
    ("Scores", "top_logprobs", bytes(4 * 512 * LOGPROBS_MAX), bytes(4 * 512 * LOGPROBS_MAX + 1)),
    ("Step", "tokens", bytes(4 * TOKENS_PER_STEP_MAX), bytes(4 * TOKENS_PER_STEP_MAX + 1)),
    ("Step", "tokens", bytes(4), bytes(3)),
    ("Step", "targets", bytes(4 * TOKENS_PER_STEP_MAX), bytes(4 * TOKENS_PER_STEP_MAX + 1)),
    ("Step", "want", "scores", "everything"),
    ("Token", "token", 2**31 - 1, 2**31),
    ("Scores", "top1", bytes(4 * TOKENS_PER_STEP_MAX), bytes(4 * TOKENS_PER_STEP_MAX + 1)),
    ("Busy", "retry_after_s", 0, float("inf")),
    ("Failed", "reason", "x" * 500, "x" * 501),
    ("Exchange", "model", "", "0" * 63),
    ("Adverts", "adverts", [SIGNED] * ADVERTS_PER_MESSAGE_MAX, [SIGNED] * (ADVERTS_PER_MESSAGE_MAX + 1)),
    (
        "Adverts",
        "adverts",
        [SIGNED | {"advert": bytes(ADVERT_BYTES_MAX)}],
        [SIGNED | {"advert": bytes(ADVERT_BYTES_MAX + 1)}],
    ),
    ("Adverts", "adverts", [SIGNED | {"signature": bytes(64)}], [SIGNED | {"signature": bytes(63)}]),
    ("Exchange", "known", bytes(8 * ADVERTS_PER_MESSAGE_MAX), bytes(8 * ADVERTS_PER_MESSAGE_MAX + 1)),
    ("Exchange", "lost", [LOST_PEER] * LOST_MAX, [LOST_PEER] * (LOST_MAX + 1)),
    ("Adverts", "lost", [LOST_PEER | {"sequence": 2**63 - 1}], [LOST_PEER | {"sequence": -1}]),
    ("BlobRequest", "offset", 2**63 - 1, 2**63),
    ("BlobRequest", "nbytes", BLOB_PIECE_BYTES_MAX, BLOB_PIECE_BYTES_MAX + 1),
    ("BlobRequest", "nbytes", 1, 0),
    ("BlobPiece", "data", bytes(BLOB_PIECE_BYTES_MAX), bytes(BLOB_PIECE_BYTES_MAX + 1)),
    ("DirectRequest", "protocol", "/" * 128, "/" * 129),
    ("DirectRequest", "protocol", "/", ""),
    ("DirectOffer", "port", 65_535, 65_536),
    ("DirectOffer", "port", 0, -1),
    ("DirectOffer", "token", bytes(32), bytes(33)),
]


@pytest.mark.parametrize(
    ("kind", "field", "allowed", "refused"), LIMITS, ids=[f"{kind}.{field}" for kind, field, *_ in LIMITS]
)
def test_a_limit_holds_at_its_edge(kind: str, field: str, allowed: Any, refused: Any) -> None:
    with_field(kind, field, allowed)
    with pytest.raises(PeerMisbehaved):
        with_field(kind, field, refused)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_message_without_one_of_its_required_fields_is_refused(kind: str) -> None:
    protocol, message = SAMPLES[kind]
    plain = msgpack.unpackb(encode(message))
    required = [field.name for field in msgspec.structs.fields(message) if field.required]
    for missing in ["type", *required]:
        with pytest.raises(PeerMisbehaved):
            decode(msgpack.packb({key: value for key, value in plain.items() if key != missing}), protocol)


def test_a_message_of_one_protocol_is_refused_by_another() -> None:
    for index, (protocol, _) in enumerate(PROTOCOLS):
        for other, (_, messages) in enumerate(PROTOCOLS):
            for message in messages if other != index else ():
                with pytest.raises(PeerMisbehaved):
                    decode(encode(message), protocol)


def test_an_answer_full_of_the_largest_adverts_fits_into_one_exchange() -> None:
    largest = SignedAdvert(bytes(ADVERT_BYTES_MAX), bytes(32), bytes(64))
    assert len(frame(Adverts((largest,) * ADVERTS_PER_MESSAGE_MAX))) <= EXCHANGE_BYTES_MAX


ADVERT_LIMITS: list[tuple[str, Any, Any]] = [
    ("moving_to", [0, 30], [30, 30]),
    ("since_s", 1e12, -1.0),
    ("queue_ms", 1e9, float("inf")),
    ("positions_free", 2**31 - 1, 2**31),
    ("delays_ms", {"1" * 40: 0.0}, {"0" * 40: 0.0}),
    ("delays_ms", {"1" * 40: 0.0}, {"1" * 40: -1.0}),
    (
        "delays_ms",
        {"1" * (40 + i): 1.0 for i in range(DELAYS_MAX)},
        {"1" * (40 + i): 1.0 for i in range(DELAYS_MAX + 1)},
    ),
    ("tokens_per_s", 0.0, -1.0),
    ("tokens_per_s_max", 1e9, 2e9),
    ("canary_at_s", 0.0, float("nan")),
    ("sessions_open", 2**31 - 1, 2**31),
    ("positions_max", 0, -1),
    ("away", True, 1),
]


@pytest.mark.parametrize(("field", "allowed", "refused"), ADVERT_LIMITS, ids=[field for field, *_ in ADVERT_LIMITS])
def test_a_limit_of_an_advert_holds_at_its_edge(field: str, allowed: Any, refused: Any) -> None:
    plain = msgpack.unpackb(encode(ADVERT))
    decode(msgpack.packb(plain | {field: allowed}), Advert)
    with pytest.raises(PeerMisbehaved):
        decode(msgpack.packb(plain | {field: refused}), Advert)


def test_an_advert_of_a_peer_that_says_no_more_than_it_must_is_understood() -> None:
    plain = msgpack.unpackb(encode(ADVERT))
    required = {field.name for field in msgspec.structs.fields(Advert) if field.required}
    bare: Advert = decode(msgpack.packb({name: plain[name] for name in required}), Advert)
    assert (bare.span, bare.since_s, bare.delays_ms, bare.moving_to) == (ADVERT.span, 0.0, {}, None)


def test_an_advert_of_a_node_with_many_addresses_and_neighbours_is_within_the_limit() -> None:
    neighbours = {Identity(bytes([i]) * 32).peer: 123.456789 for i in range(DELAYS_MAX)}
    addresses = (f"/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/tcp/65535/p2p/{ADVERT.peer}",) * ADDRESSES_MAX
    full = msgspec.structs.replace(ADVERT, addresses=addresses, delays_ms=neighbours, model_name="m" * 500)
    assert len(encode(full)) <= ADVERT_BYTES_MAX


def test_a_span_is_two_numbers_on_the_wire() -> None:
    assert HOP["span"] == [0, 10]


def test_a_span_says_which_layers_it_has() -> None:
    span = Span(3, 5)
    assert [layer for layer in range(8) if layer in span] == [3, 4]
    assert (len(span), str(span)) == (2, "3:5")


def test_a_blob_may_be_larger_than_two_gib() -> None:
    assert with_field("BlobPiece", "total_bytes", 70 * 2**30).total_bytes == 70 * 2**30
    assert BLOB_MESSAGES[0].offset > 2**32
