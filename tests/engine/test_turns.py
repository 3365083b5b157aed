"""Turns of several processes, each played by a `Turns` of its own: the locks are between open files."""

import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from p2pgrid.core import rotation
from p2pgrid.core.batching import Kind
from p2pgrid.core.rotation import DECODES_MAX
from p2pgrid.engine import turns
from p2pgrid.engine.turns import Turns
from p2pgrid.errors import LocalFault

HOLDER = """
import sys, trio
from pathlib import Path
from p2pgrid.core.batching import Kind
from p2pgrid.engine.turns import Turns

async def main():
    async with Turns(Path(sys.argv[1])).take():
        print("held", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_no_two_have_their_turn_at_once_and_everybody_gets_one(tmp_path: Path) -> None:
    rng = random.Random(2)
    inside = 0
    had = [0] * 4

    async def compute(i: int) -> None:
        nonlocal inside
        own = Turns(tmp_path)
        for _ in range(20):
            async with own.take():
                inside += 1
                assert inside == 1
                await trio.sleep(rng.uniform(0, 0.002))
                inside -= 1
            had[i] += 1
        own.close()

    with trio.fail_after(30):
        async with trio.open_nursery() as tasks:
            for i in range(len(had)):
                tasks.start_soon(compute, i)
    assert had == [20] * 4


async def test_who_always_has_work_lets_those_who_wait_go_first(tmp_path: Path) -> None:
    busy, patient = Turns(tmp_path), Turns(tmp_path)
    order: list[str] = []

    async def take(own: Turns, name: str, times: int) -> None:
        for _ in range(times):
            async with own.take():
                order.append(name)
                await trio.sleep(0.002)

    with trio.fail_after(30):
        async with trio.open_nursery() as tasks:
            tasks.start_soon(take, busy, "busy", 10)
            await trio.sleep(0.001)
            tasks.start_soon(take, patient, "patient", 1)
    assert order.index("patient") <= 2
    busy.close()
    patient.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_holder_that_is_gone_or_stuck_does_not_stop_the_others(tmp_path: Path, how: signal.Signals) -> None:
    own = Turns(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220 - this test has no other task
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            os.kill(holder.pid, how)
            with trio.fail_after(10 * turns.PATIENCE_S):
                for _ in range(100):  # a stuck one is waited for once, not each time
                    async with own.take():
                        pass
        finally:
            holder.kill()
    own.close()


async def test_a_turn_is_taken_at_once_only_when_nobody_else_has_it_or_waits_for_it(tmp_path: Path) -> None:
    one, other = Turns(tmp_path), Turns(tmp_path)
    turn = one.try_take()
    assert turn is not None
    assert other.try_take() is None
    async with trio.open_nursery() as tasks:

        async def wait_for_it() -> None:
            async with other.take():
                pass

        tasks.start_soon(wait_for_it)
        await trio.sleep(0.01)
        turn.computed("decode", 1)
        assert turn.held, "whoever waits may join with what was computed here"
        turn.end()
        assert one.try_take() is None, "the one that waited goes first"
    turn.end()  # once more does nothing
    one.close()
    other.close()


async def test_a_few_turns_of_decode_steps_follow_one_of_a_prefill_step(tmp_path: Path) -> None:
    """While both wait: here four prompts, and before the last of them is read two answers have had some turns."""
    order: list[Kind] = []

    async def compute(kind: Kind, times: int) -> None:
        with closing(Turns(tmp_path)) as own:
            for _ in range(times):
                async with own.take(kind) as turn:
                    await trio.sleep(0.02 if kind == "prefill" else 0.002)
                    order.append(kind)
                    turn.computed(kind, 128)

    with closing(Turns(tmp_path)) as first, trio.fail_after(30):
        held = first.try_take()
        assert held is not None
        async with trio.open_nursery() as tasks:
            for _ in range(4):
                tasks.start_soon(compute, "prefill", 1)
            for _ in range(2):
                tasks.start_soon(compute, "decode", 6)
            await trio.sleep(0.01)
            held.computed("prefill", 128)
    last = len(order) - 1 - order[::-1].index("prefill")
    assert order[:last].count("decode") >= 3, order
    assert order[: 2 * (DECODES_MAX + 1)].count("prefill") >= 1, order


async def test_a_prefill_step_waits_for_decode_steps_on_their_way_between_two_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer goes round three stages; the prompt that waits all the time comes after the third."""
    monkeypatch.setattr(rotation, "ON_THE_WAY_S", 60.0)
    monkeypatch.setattr(turns, "PATIENCE_S", 60.0)
    order: list[tuple[Kind, bool]] = []

    async def compute(own: Turns, kind: Kind) -> None:
        async with own.take(kind) as turn:
            order.append((kind, turn.prefill_is_due))
            turn.computed(kind, 128)

    with ExitStack() as stack, trio.fail_after(30):
        first, answers, prompts = (stack.enter_context(closing(Turns(tmp_path))) for _ in range(3))
        held = first.try_take()
        assert held is not None
        async with trio.open_nursery() as tasks:
            tasks.start_soon(compute, prompts, "prefill")
            tasks.start_soon(compute, answers, "decode")
            await trio.sleep(0.5)  # much longer than the turns of decode steps that follow
            held.computed("prefill", 128)
            while len(order) < DECODES_MAX:
                await trio.sleep(2 * turns.LOOK_S)
                await compute(answers, "decode")
    assert order == [("decode", False)] * DECODES_MAX + [("prefill", True)]


async def test_a_prefill_step_does_not_wait_for_decode_steps_that_do_not_come(tmp_path: Path) -> None:
    with closing(Turns(tmp_path)) as answers, closing(Turns(tmp_path)) as prompts, trio.fail_after(30):
        async with answers.take("decode") as turn:
            turn.computed("decode", 1)
        async with prompts.take("prefill"):
            assert answers.try_take() is None


@pytest.mark.parametrize("follows", [True, False], ids=["the next stage is here", "the next stage is elsewhere"])
async def test_decode_steps_that_wait_are_joined_by_those_that_go_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, follows: bool
) -> None:
    """A step waits at stage c, one ran at a and is on its way to b: it goes on to b, and from there to c."""
    monkeypatch.setattr(rotation, "ON_THE_WAY_S", 60.0)
    order: list[str] = []
    names = ["a", "b", "c"] if follows else ["a", "c"]

    async def compute(name: str) -> None:
        async with stages[name].take() as turn:
            order.append(name)
            turn.computed("decode", 1)

    with ExitStack() as stack, trio.fail_after(30):
        stages = {name: stack.enter_context(closing(Turns(tmp_path))) for name in names}
        for name, onward in zip("abc", "bca", strict=True):
            if name in stages:
                stack.enter_context(stages[name].standing(name, onward))
        async with trio.open_nursery() as tasks:
            first = stages["a"].try_take()
            assert first is not None
            tasks.start_soon(compute, "c")
            await trio.sleep(2 * turns.LOOK_S)
            first.computed("decode", 1)
            first.end()
            await trio.sleep(4 * turns.LOOK_S)
            assert order == ([] if follows else ["c"])
            if follows:
                await compute("b")
    assert order == names[1:]


async def test_decode_steps_that_wait_let_only_a_few_others_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others go to and fro between stages a and b, and never come to c."""
    monkeypatch.setattr(rotation, "ON_THE_WAY_S", 60.0)
    had = trio.Event()

    async def compute() -> None:
        async with stages["c"].take():
            had.set()

    with ExitStack() as stack, trio.fail_after(30):
        stages = {name: stack.enter_context(closing(Turns(tmp_path))) for name in "abc"}
        for name, onward in zip("abc", "baa", strict=True):
            stack.enter_context(stages[name].standing(name, onward))
        held = stages["a"].try_take()
        assert held is not None
        async with trio.open_nursery() as tasks:
            tasks.start_soon(compute)
            await trio.sleep(2 * turns.LOOK_S)
            for name in "ba"[: rotation.PASSED_OVER_MAX - 1]:
                held.computed("decode", 1)
                held.end()
                held = stages[name].try_take()
                assert held is not None
                await trio.sleep(2 * turns.LOOK_S)
                assert not had.is_set()
            held.computed("decode", 1)
            held.end()
            await had.wait()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot take turns in"):
        Turns(tmp_path / "missing")
