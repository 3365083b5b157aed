import tracemalloc
from itertools import pairwise
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import Span
from p2pgrid.wire.adverts import AdvertMessage
from p2pgrid.wire.codec import FRAME_BYTES_MAX, HEADER, FrameBuffer, decode, encode, frame
from p2pgrid.wire.messages import ROUTE_HOPS_MAX, Hop, LinkMessage, Open, Ping, Step
from p2pgrid.wire.transfer_messages import BLOB_PIECE_BYTES_MAX, BlobMessage, BlobPiece, DirectMessage
from tests.wire.samples import ADDRESS, IDENTITY, MODEL, PROTOCOLS, SESSION, golden_frames

ALL = [(protocol, message) for protocol, messages in PROTOCOLS for message in messages]
NAMES = [type(message).__name__ for _, message in ALL]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(("protocol", "message"), ALL, ids=NAMES)
def test_the_bytes_of_a_message_do_not_change(protocol: Any, message: Any) -> None:
    recorded = golden_frames()[type(message).__name__.lower()]
    assert frame(message).hex() == recorded.hex()
    assert decode(recorded[HEADER.size :], protocol) == message


def test_every_kind_of_message_has_a_golden_frame() -> None:
    kinds = {kind for union in (LinkMessage, AdvertMessage, BlobMessage, DirectMessage) for kind in get_args(union)}
    assert {kind.__name__ for kind in kinds} == set(NAMES)
    assert {kind.__name__.lower() for kind in kinds} == set(golden_frames())


@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(0, 600), max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_cut_of_a_stream_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(HEADER.pack(len(payload)) + payload for payload in payloads)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer = FrameBuffer()
    found = []
    for start, stop in pairwise(edges):
        found += buffer.feed(stream[start:stop])
    assert found == payloads
    assert buffer.pending_bytes == 0


def test_an_unfinished_frame_is_kept_until_its_rest_comes() -> None:
    whole = frame(Ping(1))
    buffer = FrameBuffer()
    assert buffer.feed(whole + whole[:7]) == [whole[HEADER.size :]]
    assert buffer.pending_bytes == 7
    assert buffer.feed(whole[7:]) == [whole[HEADER.size :]]


def test_a_header_of_four_gib_is_refused_without_taking_memory() -> None:
    buffer = FrameBuffer()
    tracemalloc.start()
    try:
        with pytest.raises(PeerMisbehaved, match="over the limit"):
            buffer.feed(b"\xff\xff\xff\xff")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    assert FrameBuffer(8).feed(HEADER.pack(8) + bytes(8)) == [bytes(8)]
    with pytest.raises(PeerMisbehaved):
        FrameBuffer(8).feed(HEADER.pack(9))


def test_a_sender_cannot_make_a_frame_over_the_limit() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        frame(Step(SESSION, 0, 0, bytes(4), hidden=bytes(FRAME_BYTES_MAX)))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_misbehaviour_and_nothing_worse(payload: bytes) -> None:
    for protocol, _ in PROTOCOLS:
        with pytest.raises(PeerMisbehaved):
            decode(payload, protocol)


@given(st.integers(0, len(ALL) - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_a_message_with_any_field_replaced_is_valid_or_misbehaviour(which: int, data: st.DataObject) -> None:
    protocol, message = ALL[which]
    plain = msgpack.unpackb(encode(message))
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(anything)
    payload = msgpack.packb(plain)
    try:
        decoded: Any = decode(payload, protocol)
    except PeerMisbehaved:
        return
    assert decode(encode(decoded), protocol) == decoded


@given(st.integers(0, len(ALL) - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_a_truncated_message_is_misbehaviour(which: int, data: st.DataObject) -> None:
    protocol, message = ALL[which]
    payload = encode(message)
    with pytest.raises(PeerMisbehaved):
        decode(payload[: data.draw(st.integers(0, len(payload) - 1))], protocol)


@given(st.dictionaries(st.text(min_size=20, max_size=24), anything, max_size=4))
@settings(max_examples=50, deadline=None)
def test_unknown_keys_are_ignored(extra: dict[str, object]) -> None:
    assert decode(msgpack.packb({"type": "ping", "nonce": 3} | extra), LinkMessage) == Ping(3)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="a byte that MessagePack never uses"),
        pytest.param(encode(Ping(1)) + b"\0", id="bytes after the end"),
        pytest.param(b"\x91" * 5000, id="nested for ever"),
        pytest.param(msgpack.packb({"type": "ping", "nonce": 1, 5: 6}), id="a key that is no string"),
        pytest.param(msgpack.packb({"type": "ping", "nonce": 1.0}), id="a float for an int"),
        pytest.param(msgpack.packb({"type": "ping", "nonce": True}), id="a bool for an int"),
        pytest.param(msgpack.packb({"type": "token", "nonce": 1}), id="another message's fields"),
        pytest.param(msgpack.packb({"type": "nonsense", "nonce": 1}), id="an unknown type"),
        pytest.param(msgpack.packb({"type": "ping", "nonce": 1, "x": msgpack.ExtType(1, b"")}), id="extension"),
        pytest.param(msgpack.packb({"type": "ping", "nonce": 1, "x": msgpack.Timestamp(1)}), id="timestamp"),
        pytest.param(b"\x82\xa4type\xa4ping\xa5nonce\xa2\xff\xfe", id="no UTF-8"),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        decode(payload, LinkMessage)


def test_text_is_not_taken_for_bytes() -> None:
    plain = msgpack.unpackb(encode(Step(SESSION, 0, 0, bytes(4)))) | {"tokens": "AAAAAA=="}
    with pytest.raises(PeerMisbehaved, match="Expected `bytes`"):
        decode(msgpack.packb(plain), LinkMessage)


def test_a_small_frame_cannot_unfold_into_much_memory() -> None:
    nested = msgpack.packb([[[] for _ in range(1000)] for _ in range(1000)])
    payload = b"\x83\xa4type\xa4ping\xa5nonce\x01\xa1x" + nested
    tracemalloc.start()
    try:
        with pytest.raises(PeerMisbehaved, match="maps and lists"):
            decode(payload, LinkMessage)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(payload)
    finally:
        tracemalloc.stop()


def test_the_largest_messages_of_each_protocol_fit() -> None:
    route = (Hop(IDENTITY.peer, Span(0, 1), (ADDRESS,) * 16),) * ROUTE_HOPS_MAX
    longest_route = Open(SESSION, 0, MODEL, route, 0)
    assert decode(frame(longest_route)[HEADER.size :], LinkMessage) == longest_route
    largest_piece = BlobPiece(BLOB_PIECE_BYTES_MAX, bytes(BLOB_PIECE_BYTES_MAX))
    assert decode(frame(largest_piece)[HEADER.size :], BlobMessage) == largest_piece


def test_what_is_wrong_is_told_in_one_short_line() -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        decode(msgpack.packb({"type": "a\nb\x1b[31m" * 200}), LinkMessage)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 300
