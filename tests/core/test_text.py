from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pgrid.core.text import TextStream

bounded = settings(max_examples=200, deadline=None)
few_letters = st.text("ab\n é€😀\ufffd", max_size=30)
any_bytes = few_letters.map(str.encode) | st.binary(max_size=30)
stop_strings = st.lists(st.text("ab", max_size=4) | st.text("ab\né€\ufffd", max_size=4), max_size=3)
cut_points = st.lists(st.integers(0, 60), max_size=12)


def _cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(p, len(data)) for p in points), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def _before_stop(text: str, stop: list[str]) -> str:
    """The text before the stop string that is complete first; of two that end together, before the longer one."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if s and text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


@given(any_bytes, cut_points)
@bounded
def test_without_stop_strings_the_pieces_join_to_the_text_however_it_is_cut(data: bytes, points: list[int]) -> None:
    stream = TextStream()
    shown = "".join(stream.push(piece) for piece in _cut(data, points)) + stream.finish()
    assert shown == data.decode("utf-8", "replace")
    assert not stream.stopped


@given(few_letters, cut_points)
@bounded
def test_without_stop_strings_no_whole_character_is_held_back(text: str, points: list[int]) -> None:
    stream = TextStream()
    sent, shown = b"", ""
    for piece in _cut(text.encode(), points):
        sent += piece
        shown += stream.push(piece)
        assert shown == sent.decode("utf-8", "ignore")


@given(any_bytes, stop_strings, cut_points)
@example(b"xabcd", ["abcd", "bc"], [1, 2, 3, 4])
@example(b"aaab", ["aab"], [1, 2, 3])
@example(b"a\xff", ["a\ufffd"], [1])
@example(b"a\xe2\x82", ["a\ufffd"], [])
@bounded
def test_the_text_ends_before_the_stop_string_however_it_is_cut(
    data: bytes, stop: list[str], points: list[int]
) -> None:
    text = data.decode("utf-8", "replace")
    expected = _before_stop(text, stop)
    stream = TextStream(stop)
    shown = ""
    for piece in _cut(data, points):
        shown += stream.push(piece)
        assert expected.startswith(shown)
    shown += stream.finish()
    assert shown == expected
    assert stream.stopped == (expected != text)
    assert not any(s in shown for s in stop if s)


@given(any_bytes, st.binary(max_size=10))
@bounded
def test_nothing_comes_after_the_stop(before: bytes, after: bytes) -> None:
    stream = TextStream(["stop"])
    assert stream.push(before + b" stop and more").endswith(" ")
    assert stream.stopped
    assert stream.push(after) == ""
    assert stream.finish() == ""


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    stream = TextStream()
    assert [stream.push(bytes([b])) for b in "€!".encode()] == ["", "", "€", "!"]


def test_an_unfinished_character_becomes_a_replacement_at_the_end() -> None:
    stream = TextStream()
    assert stream.push(b"a\xe2\x82") == "a"
    assert stream.finish() == "\ufffd"


def test_what_may_begin_a_stop_string_is_held_back_and_shown_when_it_does_not() -> None:
    stream = TextStream(["\n\nUser:"])
    assert [stream.push(piece) for piece in (b"Hi\n", b"\nUs", b"ed", b"\n")] == ["Hi", "", "\n\nUsed", ""]
    assert stream.finish() == "\n"
    assert not stream.stopped


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"a", b"b", b"c", b"d"], [b"ab", b"cd"]])
def test_of_two_overlapping_stop_strings_the_one_that_is_complete_first_holds(pieces: list[bytes]) -> None:
    stream = TextStream(["abcd", "bc"])
    assert "".join(stream.push(piece) for piece in pieces) == "a"
    assert stream.stopped


def test_an_empty_stop_string_stops_nothing() -> None:
    stream = TextStream([""])
    assert stream.push(b"abc") == "abc"
    assert not stream.stopped
