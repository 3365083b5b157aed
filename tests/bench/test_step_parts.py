"""The parts of a token's time: marks of several stages, joined along the ring."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.bench.stats import row
from p2pgrid.bench.step_parts import LEFT, PARTS, TOKEN, along_the_route, medians, parts_of, read_trace, table
from p2pgrid.errors import LocalFault
from p2pgrid.trace import open_trace

EVENTS = ("read", "decoded", "delivered", "started", "computed", "queued", "written")
Stage = dict[tuple[str, int], float]


def ring(waits_s: list[float], hops: int, positions: int, first: int = 10) -> list[Stage]:
    """Marks of steps that go round and round; the waits between one mark and the next are taken in turn."""
    stages: list[Stage] = [{} for _ in range(hops)]
    now, step = 0.0, 0
    for position in range(first, first + positions):
        for hop in range(hops):
            for event in EVENTS:
                onward = position + (hop == hops - 1 and event in ("queued", "written"))
                stages[hop][event, onward] = now
                now += waits_s[step % len(waits_s)]
                step += 1
    return stages


@given(waits_s=st.lists(st.floats(0, 1), min_size=1, max_size=30), hops=st.integers(2, 4), positions=st.integers(2, 5))
def test_the_parts_of_a_turn_are_all_of_its_time(waits_s: list[float], hops: int, positions: int) -> None:
    stages = ring(waits_s, hops, positions)
    for position in range(10, 10 + positions - 1):
        turn = parts_of(stages, position)
        took_s = stages[0]["read", position + 1] - stages[0]["read", position]
        assert sum(sum(parts.values()) for parts in turn) == pytest.approx(took_s, abs=1e-9)
        assert all(value_s >= 0 for parts in turn for value_s in parts.values())


def test_each_wait_belongs_to_its_part() -> None:
    stages = ring([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], hops=2, positions=2)
    for parts in parts_of(stages, 10):
        assert parts == {"compute_s": 8.0, "queue_s": 4.0, "codec_s": 17.0, "link_s": 34.0, "wire_s": 64.0}


def test_what_was_read_counts_as_written_by_then() -> None:
    stages = ring([1.0], hops=2, positions=2)
    stages[0]["written", 10] += 5.0
    (first, _) = parts_of(stages, 10)
    assert (first["link_s"], first["wire_s"]) == (3.0, 0.0)


@given(hop=st.integers(0, 1), event=st.sampled_from(EVENTS))
def test_a_turn_that_lacks_a_mark_has_no_parts(hop: int, event: str) -> None:
    stages = ring([1.0], hops=2, positions=2)
    onward = 10 + (hop == 1 and event in ("queued", "written"))
    del stages[hop][event, onward]
    assert parts_of(stages, 10) == []


def test_stages_are_put_in_the_order_in_which_they_computed() -> None:
    first, second, third = ring([1.0], hops=3, positions=2)
    assert along_the_route([third, {}, first, second], 10) == [first, second, third]


def test_medians_add_up_to_the_time_of_a_token_and_make_a_table() -> None:
    stages = ring([0.001], hops=2, positions=6)
    turns = [parts_of(stages, position) for position in range(10, 15)]
    figures = medians(turns, token_s=0.02)
    assert figures[LEFT] + sum(figures[part] for part in PARTS) == pytest.approx(figures[TOKEN])
    assert figures["compute_s"] == pytest.approx(figures["compute_s@0"] + figures["compute_s@1"])
    made = table([row("swarm", metric, "s", [value]) for metric, value in figures.items()])
    assert made is not None
    head, lines = made
    assert head[1:] == ["stage 0", "stage 1", "ring", "share"]
    assert lines[0] == ["computing", "1.00", "1.00", "2.00", "10%"]
    assert lines[-1] == ["a token, as measured", "", "", "20.00", "100%"]
    assert len(lines) == len(PARTS) + 2


def test_rows_without_parts_make_no_table() -> None:
    assert table([]) is None
    assert table([row("swarm", "token_s", "s", [0.0])]) is None


def test_what_a_node_traced_is_read_back_by_session(tmp_path: Path) -> None:
    file = tmp_path / "node.jsonl"
    with open_trace(file) as tracer:
        for at_s, (session, position) in enumerate([("a", 1), ("b", 1), ("a", 2)]):
            tracer.note("read", session, position, float(at_s))
    assert read_trace(file) == {"a": {("read", 1): 0.0, ("read", 2): 2.0}, "b": {("read", 1): 1.0}}


def test_a_trace_that_is_none_is_a_local_fault(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match=r"nothing\.jsonl"):
        read_trace(tmp_path / "nothing.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"event": "read"}))
    with pytest.raises(LocalFault, match="session"):
        read_trace(broken)
