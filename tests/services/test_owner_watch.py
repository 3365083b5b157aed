"""Watching what other programs take of the machine."""

import os
import subprocess
import sys

import pytest
import trio

from p2pgrid.core.owner_policy import OwnerTerms
from p2pgrid.services import owner_watch
from p2pgrid.services.owner_watch import LOOK_S, SURE_AFTER_LOOKS, OtherPrograms, OwnerWatch, is_p2pgrid


async def test_whoever_waits_hears_when_the_owner_comes_and_goes(autojump_clock: trio.abc.Clock) -> None:
    load = [0.0]
    watch = OwnerWatch(OwnerTerms(0.3, back_s=3.0, gone_s=60.0), lambda: load[0])
    async with trio.open_nursery() as tasks:
        tasks.start_soon(watch.run)
        await trio.sleep(100)
        assert not watch.owner_is_back
        load[0] = 0.9  # in the moment of a look, which takes it for the load since the last one
        came_s = trio.current_time()
        await watch.wait_until_back()
        assert 3.0 - LOOK_S <= trio.current_time() - came_s <= 3.0 + LOOK_S
        load[0] = 0.1
        went_s = trio.current_time()
        await watch.wait_until_gone()
        assert 60.0 - LOOK_S <= trio.current_time() - went_s <= 60.0 + LOOK_S
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("/usr/bin/python3 .venv/bin/p2pgrid node --threads 1", True),
        ("python3.11 -m p2pgrid serve", True),
        ("/usr/bin/python3 -u -m p2pgrid.bench.child", True),
        ("p2pgrid top", True),
        ("vim p2pgrid", False),
        ("python3 train.py p2pgrid", False),
        ("python3", False),
        ("", False),
    ],
)
def test_programs_of_p2pgrid_are_known_by_their_command_line(command: str, ours: bool) -> None:
    assert is_p2pgrid(command.split()) == ours


SPINS = "import time\ninput()\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"


def test_what_another_program_takes_counts_and_what_one_of_ours_takes_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two look at the same time, of whom one takes the program that computes for one of ours."""
    monkeypatch.setattr(owner_watch, "is_p2pgrid", lambda command: SPINS in command)
    with subprocess.Popen([sys.executable, "-c", SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        plain, knowing = OtherPrograms(), OtherPrograms()
        plain._known[child.pid] = False, SURE_AFTER_LOOKS
        plain.share(), knowing.share()
        began_s = owner_watch._machine_s()[1]
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        seen, seen_knowing = plain.share(), knowing.share()
        passed_s = owner_watch._machine_s()[1] - began_s
        child.kill()
    assert (seen - seen_knowing) * passed_s == pytest.approx(0.5, abs=0.25)


def test_of_the_machine_no_more_than_all_and_no_less_than_nothing_is_taken() -> None:
    programs = OtherPrograms()
    assert all(0.0 <= programs.share() <= 1.0 for _ in range(3))
    assert os.getpid() in programs._read_ours()
