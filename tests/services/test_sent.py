"""What a stage keeps of what it sent: in memory, on the disk, or no longer; it never gives out a wrong step."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from p2pgrid.ids import SessionId
from p2pgrid.services.worker import sent
from p2pgrid.services.worker.sent import STEP_BYTES, SentLog, SentSteps
from p2pgrid.wire.messages import Step
from p2pgrid.wire.tensors import pack_ints

SESSION = SessionId("5e" * 16)


def step(position: int, count: int, mark: int = 0) -> Step:
    return Step(SESSION, 0, position, pack_ints([mark] * count), bytes([mark % 256]) * (50 * count))


class SentMachine(RuleBasedStateMachine):
    """Two sessions with little room, beside plain lists of all that they sent."""

    memory_bytes_max = 1500
    disk_bytes_max = 4000
    has_room = False

    def __init__(self) -> None:
        super().__init__()
        self.log = SentLog(self.memory_bytes_max, self.disk_bytes_max)
        self.sessions = [self.log.open(), self.log.open()]
        self.truth: list[list[Step]] = [[], []]
        self.mark = 0

    def _put(self, which: int, position: int, count: int) -> None:
        self.mark += 1
        new = step(position, count, self.mark)
        self.sessions[which].put(new)
        self.truth[which] = [old for old in self.truth[which] if old.position < position] + [new]

    @rule(which=st.integers(0, 1), count=st.integers(1, 6))
    def append(self, which: int, count: int) -> None:
        self._put(which, self._end(which), count)

    @rule(which=st.integers(0, 1), count=st.integers(1, 6), data=st.data())
    def go_back(self, which: int, count: int, data: st.DataObject) -> None:
        self._put(which, data.draw(st.integers(0, self._end(which))), count)

    @rule(which=st.integers(0, 1))
    def end_and_begin_another(self, which: int) -> None:
        self.sessions[which].close()
        self.sessions[which] = self.log.open()
        self.truth[which] = []

    @rule(which=st.integers(0, 1), data=st.data())
    def replay(self, which: int, data: st.DataObject) -> None:
        steps, truth = self.sessions[which], self.truth[which]
        start = steps.start
        if start is None:
            return
        a = data.draw(st.integers(start, self._end(which)))
        b = data.draw(st.integers(a, self._end(which) + 1))
        given_out = list(steps.between(a, b))
        first = max((each.position for each in truth if each.position <= a), default=0)
        assert given_out == [each for each in truth if first <= each.position < b]

    @invariant()
    def limits_hold(self) -> None:
        assert self.log.memory_bytes == sum(each.memory_bytes for each in self.sessions)
        assert 0 <= self.log.memory_bytes <= self.memory_bytes_max
        assert 0 <= self.log.disk_bytes <= self.disk_bytes_max

    @invariant()
    def nothing_is_lost_while_there_is_room(self) -> None:
        for steps, truth in zip(self.sessions, self.truth, strict=True):
            if self.has_room and truth:
                assert steps.start == truth[0].position

    def teardown(self) -> None:
        for steps in self.sessions:
            steps.close()
        assert self.log.memory_bytes == self.log.disk_bytes == 0
        assert not self.log._sessions

    def _end(self, which: int) -> int:
        return max((each.position + len(each.tokens) // 4 for each in self.truth[which]), default=0)


class WithRoomOnTheDisk(SentMachine):
    disk_bytes_max = 10**9
    has_room = True


class InMemory(SentMachine):
    memory_bytes_max = 10**9
    has_room = True


TestSentMachine = SentMachine.TestCase
TestWithRoomOnTheDisk = WithRoomOnTheDisk.TestCase
TestInMemory = InMemory.TestCase
for case in (TestSentMachine, TestWithRoomOnTheDisk, TestInMemory):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
del case  # else it would be a test of its own


def filled(log: SentLog, count: int = 20) -> SentSteps:
    steps = log.open()
    for position in range(count):
        steps.put(step(position, 1, position))
    return steps


def test_the_session_with_most_in_memory_gives_way_first() -> None:
    log = SentLog(20 * (STEP_BYTES + 60))
    large, small = filled(log, 16), filled(log, 8)
    assert small.memory_bytes == 8 * (STEP_BYTES + 54)
    assert log.disk_bytes > 0
    assert list(large.between(0, 16)) == [step(i, 1, i) for i in range(16)]
    large.close()
    small.close()


@pytest.mark.parametrize("trouble", ["the disk is full", "there is no place for files", "a write is cut short"])
def test_what_the_disk_does_not_take_is_replayed_by_nobody(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    if trouble == "there is no place for files":
        monkeypatch.setattr(sent.tempfile, "TemporaryFile", fail)
    else:
        monkeypatch.setattr(os, "pwrite", fail if trouble == "the disk is full" else lambda *args: 3)
    log = SentLog(1000)
    steps = filled(log)
    assert steps.start is not None
    assert steps.start > 0
    assert list(steps.between(steps.start, 20)) == [step(i, 1, i) for i in range(steps.start, 20)]
    assert list(steps.between(0, 20)) == []
    steps.close()
    assert log.disk_bytes == log.memory_bytes == 0


def test_a_session_says_once_that_its_steps_are_not_kept() -> None:
    log = SentLog(1000, disk_bytes_max=2000)
    with capture_logs() as said:
        one, other = filled(log, 100), filled(log, 100)
    assert [line["event"] for line in said] == ["steps that were sent cannot be kept"] * 2
    one.close()
    other.close()


def test_what_cannot_be_read_again_ends_the_replay_and_is_not_promised_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = SentLog(1000)
    steps = filled(log)
    assert steps.start == 0
    good = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: good(fd, n, at) if at == 0 else b"\xc1" * n)
    assert list(steps.between(0, 20)) == [step(0, 1, 0)]
    assert steps.start == 2
    steps.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_file_is_left_open() -> None:
    before = open_files()
    log = SentLog(500)
    steps = filled(log)
    assert open_files() == before + 1
    steps.close()
    steps.close()
    assert open_files() == before


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(0, 60), st.integers(0, 60))
def test_a_replay_that_others_interrupt_by_filling_the_memory_gives_the_same_steps(
    counts: list[int], a: int, b: int
) -> None:
    log = SentLog(3000)
    steps, other = log.open(), log.open()
    position = 0
    for count in counts:
        steps.put(step(position, count, position))
        position += count
    expected = list(steps.between(a, b))
    found = []
    for i, each in enumerate(steps.between(a, b)):
        found.append(each)
        other.put(step(i, 20, i))
    assert found == expected
    steps.close()
    other.close()
