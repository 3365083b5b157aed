"""The `p2pgrid` command: its sub-commands, and how errors become one line and an exit status.

Exit status: 0 = done, 1 = failed (the command was right, something else was not), 2 = wrong usage (change
the command). Sub-commands are imported only when used, so that `--help` is quick.
"""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from p2pgrid import __version__
from p2pgrid.cli.commands import COMMANDS, GROUPS, CommandList
from p2pgrid.cli.console import say
from p2pgrid.errors import BadInput, P2pgridError
from p2pgrid.node.logs import log_to_stderr

NOBODY_READS = {errno.EPIPE, errno.EIO}
"""Of writing output whose reader has ended, or to a terminal that was closed."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""All other files are written where these errors are understood: here they are about the output."""

app = App(
    name="p2pgrid",
    version=__version__,
    help="Idle machines as one peer-to-peer inference network. Start with: p2pgrid swarm --nodes 3 --keep",
    help_format="plaintext",
    help_formatter=CommandList(),
    suppress_keyboard_interrupt=False,  # `run` turns it into a line and a status
)
for _place, _name in enumerate(COMMANDS):
    _what = "app" if _name in GROUPS else _name
    app.command(f"p2pgrid.cli.{_name}:{_what}", name=_name, sort_key=_place)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    try:
        log_to_stderr()
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        say(f"p2pgrid: {' '.join(str(error).split())}")
        return 2
    except BadInput as error:
        say(f"p2pgrid: {error}")
        return 2
    except P2pgridError as error:
        say(f"p2pgrid: {error}")
        return 1
    except KeyboardInterrupt:
        say("p2pgrid: interrupted")
        return 1
    except Exception as error:  # noqa: BLE001 - owns every failure that nobody expected: a user gets no traceback
        if isinstance(error, OSError) and error.errno in NOBODY_READS | NO_ROOM:
            if error.errno in NO_ROOM:
                say(f"p2pgrid: cannot write the output: {error.strerror}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
            return 1
        say(f"p2pgrid: a defect of p2pgrid: {type(error).__name__}: {error}; details are in {_write_down(error)}")
        return 1
    return result if isinstance(result, int) else 0


def _write_down(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="p2pgrid-defect-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name
