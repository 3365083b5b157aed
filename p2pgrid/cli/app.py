"""The `p2pgrid` command: its sub-commands, and how errors become one line and an exit status.

Exit status: 0 = done, 1 = failed (the command was right, something else was not), 2 = wrong usage (change
the command). Sub-commands are imported only when used, so that `--help` is quick.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from p2pgrid import __version__
from p2pgrid.cli.console import say
from p2pgrid.errors import BadInput, P2pgridError

app = App(
    name="p2pgrid",
    version=__version__,
    help="Idle machines as one peer-to-peer inference network. Start with: p2pgrid swarm --nodes 3",
    help_format="plaintext",
)
for _name in ("swarm", "generate", "node", "bootstrap", "status", "score", "sim"):
    app.command(f"p2pgrid.cli.{_name}:{_name}", name=_name)
app.command("p2pgrid.cli.models:app", name="models")


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
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
    return result if isinstance(result, int) else 0


def main() -> None:
    sys.exit(run())
