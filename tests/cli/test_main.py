"""The `p2pgrid` command as a process of its own."""

import subprocess
import sys

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
