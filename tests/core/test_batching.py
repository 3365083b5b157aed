from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pgrid.core.batching import CLIENTS_MAX, PREFILL_POSITIONS_MAX, Scheduler, Waiting, _Turns

ROWS = 20
ROWS_MAX = 4
CLIENTS = ["ann", "bob", "cyd"]


def kind(step: Waiting) -> str:
    return "prefill" if step.count > 1 else "draft" if step.draft else "decode"


def test_how_many_rows_would_decode_is_known_before_they_are_taken() -> None:
    scheduler = Scheduler(ROWS_MAX)
    assert scheduler.decode_rows == 0
    for row in range(ROWS_MAX + 1):
        scheduler.add(Waiting(row, "ann", 1, draft=row == 2))
        assert scheduler.decode_rows == min(row + 1, ROWS_MAX)
    assert len(scheduler.next()) == ROWS_MAX
    scheduler.add(Waiting(9, "ann", 2))
    assert scheduler.decode_rows == 0


class SchedulerMachine(RuleBasedStateMachine):
    """The scheduler beside a plain table of what waits and how many more calls it may take."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(ROWS_MAX)
        self.waiting: dict[int, Waiting] = {}
        self.patience: dict[int, int] = {}
        """In how many more batches of its kind the row's step has its turn at the latest; drafts are promised none."""
        self.prefilled: list[int] = []
        """Positions of the prefill steps since the last decode batch."""
        self.decoded = False
        """Whether the last batch was of decode steps."""

    @rule(
        row=st.integers(0, ROWS - 1),
        client=st.sampled_from(CLIENTS),
        count=st.sampled_from([1, 1, 1, 2, 128]),
        draft=st.booleans(),
    )
    def add(self, row: int, client: str, count: int, draft: bool) -> None:
        step = Waiting(row, client, count, draft)
        if row in self.waiting:
            with pytest.raises(ValueError, match="waits already"):
                self.scheduler.add(step)
            return
        ahead = sum(other.client == client and kind(other) == kind(step) for other in self.waiting.values())
        slots = (ahead + 1) * len(CLIENTS)  # each other client may get one between any two of this one
        self.patience[row] = slots if count > 1 else -(-slots // ROWS_MAX)
        self.scheduler.add(step)
        self.waiting[row] = step

    @rule(rows=st.sets(st.integers(0, ROWS - 1)), client=st.sampled_from(CLIENTS), count=st.sampled_from([1, 64]))
    def add_many(self, rows: set[int], client: str, count: int) -> None:
        for row in sorted(rows - set(self.waiting)):
            self.add(row, client, count, draft=False)

    @rule(row=st.integers(0, ROWS - 1))
    def remove(self, row: int) -> None:
        self.scheduler.remove(row)
        self.waiting.pop(row, None)

    @rule()
    def next(self) -> None:
        batch = self.scheduler.next()
        waited = Counter(kind(step) for step in self.waiting.values())
        taken = Counter(kind(step) for step in batch)
        assert bool(batch) == bool(self.waiting)
        for step in batch:
            assert self.waiting.pop(step.row) == step, "run twice, or not what waits"
        if taken["prefill"]:
            assert len(batch) == 1
            self.prefilled.append(batch[0].count)
            together = sum(self.prefilled)
            assert together <= PREFILL_POSITIONS_MAX or len(self.prefilled) == 1 or waited.keys() == {"prefill"}, (
                "more positions of prefill steps in a row than may be, while others wait"
            )
            self.decoded = False
        elif batch:
            assert not (self.decoded and waited["prefill"]), "two decode batches in a row while a prefill step waits"
            assert taken["decode"] == min(waited["decode"], ROWS_MAX)
            assert taken["draft"] == min(waited["draft"], ROWS_MAX - taken["decode"])
            self.prefilled, self.decoded = [], True
        for row, step in self.waiting.items():
            self.patience[row] -= (step.count > 1) == bool(taken["prefill"])
            assert (step.draft and step.count == 1) or self.patience[row] > 0, "a step was kept waiting for too long"

    @invariant()
    def as_many_wait_as_were_added_and_neither_taken_nor_removed(self) -> None:
        assert len(self.scheduler) == len(self.waiting)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.integers(ROWS_MAX, 3 * ROWS_MAX), min_size=1, max_size=6),
    st.integers(1, 60),
    st.sampled_from([1, 128]),
)
@settings(deadline=None)
def test_clients_that_always_want_more_are_served_alike(sessions: list[int], calls: int, count: int) -> None:
    scheduler = Scheduler(ROWS_MAX)
    owners = [client for client, many in enumerate(sessions) for _ in range(many)]
    for row, client in enumerate(owners):
        scheduler.add(Waiting(row, str(client), count))
    served = Counter({str(client): 0 for client in range(len(sessions))})
    rows: Counter[int] = Counter()
    for _ in range(calls):
        for step in scheduler.next():
            served[step.client] += 1
            rows[step.row] += 1
            scheduler.add(step)
    assert max(served.values()) - min(served.values()) <= 1
    for client in range(len(sessions)):  # first come, first served
        own = [rows[row] for row, owner in enumerate(owners) if owner == client]
        assert max(own) - min(own) <= 1


def test_a_client_with_one_session_is_in_every_batch_beside_one_with_fifty() -> None:
    scheduler = Scheduler(ROWS_MAX)
    for row in range(50):
        scheduler.add(Waiting(row, "many", 1))
    for _ in range(30):
        scheduler.add(Waiting(99, "one", 1))
        batch = scheduler.next()
        assert 99 in [step.row for step in batch]
        assert len(batch) == ROWS_MAX
        for step in batch:
            if step.client == "many":
                scheduler.add(step)


def test_short_prompts_are_read_one_after_another_before_answers_go_on() -> None:
    scheduler = Scheduler(ROWS_MAX)
    scheduler.add(Waiting(0, "ann", 1))
    assert scheduler.next() == [Waiting(0, "ann", 1)]
    scheduler.add(Waiting(0, "ann", 1))
    half = PREFILL_POSITIONS_MAX // 2
    prompts = [Waiting(row, "bob", half) for row in (1, 2, 3)]
    for prompt in prompts:
        scheduler.add(prompt)
    order = [scheduler.next() for _ in range(4)]
    assert order == [[prompts[0]], [prompts[1]], [Waiting(0, "ann", 1)], [prompts[2]]]


def test_a_client_with_one_prompt_waits_for_one_step_of_another_with_fifty() -> None:
    scheduler = Scheduler(ROWS_MAX)
    for row in range(50):
        scheduler.add(Waiting(row, "many", 128))
    assert scheduler.next()[0].client == "many"
    scheduler.add(Waiting(99, "one", 128))
    assert scheduler.next() == [Waiting(99, "one", 128)]


def test_drafting_costs_a_client_none_of_its_turns() -> None:
    scheduler = Scheduler(1)
    scheduler.add(Waiting(0, "ann", 1))
    scheduler.add(Waiting(1, "bob", 1))
    assert [scheduler.next()[0].client for _ in range(2)] == ["ann", "bob"]
    scheduler.add(Waiting(0, "ann", 1, draft=True))
    assert scheduler.next() == [Waiting(0, "ann", 1, draft=True)]
    scheduler.add(Waiting(1, "bob", 1))
    scheduler.add(Waiting(0, "ann", 1))
    assert scheduler.next()[0].client == "ann"


def test_asking_when_nothing_waits_gives_no_turn_away() -> None:
    scheduler = Scheduler(ROWS_MAX)
    scheduler.add(Waiting(0, "ann", 128))
    assert scheduler.next()
    assert scheduler.next() == []
    scheduler.add(Waiting(0, "ann", 128))
    scheduler.add(Waiting(1, "bob", 1))
    assert scheduler.next() == [Waiting(1, "bob", 1)]


def test_a_prefill_step_that_is_not_due_runs_only_when_nothing_else_waits() -> None:
    scheduler = Scheduler(ROWS_MAX)
    prompt, answer = Waiting(0, "ann", 128), Waiting(1, "bob", 1)
    scheduler.add(prompt)
    for _ in range(3):
        scheduler.add(answer)
        assert scheduler.next(prefill_is_due=False) == [answer]
    scheduler.add(answer)
    assert scheduler.next(prefill_is_due=True) == [prompt]
    assert scheduler.next() == [answer]
    scheduler.add(prompt)
    assert scheduler.next(prefill_is_due=False) == [prompt]


def test_what_is_remembered_of_clients_is_bounded() -> None:
    turns = _Turns()
    for client in range(CLIENTS_MAX + 50):
        turns.pick([Waiting(0, str(client), 1)], 1)
    assert len(turns._served) == CLIENTS_MAX


def test_a_batch_of_no_rows_and_a_step_of_no_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 0 rows"):
        Scheduler(0)
    with pytest.raises(ValueError, match="a step of 0 positions"):
        Scheduler().add(Waiting(0, "ann", 0))
