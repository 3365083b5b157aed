"""The `p2pgrid` command as a process of its own."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ENDS = """
import atexit, gc, sys
from p2pgrid.cli.main import main
atexit.register(lambda: print(gc.get_freeze_count() > 0))
sys.argv = ["p2pgrid", "status", "--every-which-way"]
main()
"""


def test_a_command_ends_without_a_search_for_cycles_in_all_that_was_imported() -> None:
    """By far the longest part of a Ctrl-C otherwise."""
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
    assert ended.stdout == "True\n"
    assert ended.returncode == 2, ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_output_for_which_there_is_no_room_is_an_error_of_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "p2pgrid", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "p2pgrid: cannot write the output: No space left on device\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a closed terminal answers otherwise")
def test_output_that_nobody_can_read_any_more_ends_a_command_quietly() -> None:
    terminal, ours = pty.openpty()
    os.close(terminal)
    reader, writer = os.pipe()
    os.close(reader)
    for output in (ours, writer):
        ended = subprocess.run(
            [sys.executable, "-m", "p2pgrid", "--help"], stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(output)
        assert (ended.returncode, ended.stderr) == (1, "")
