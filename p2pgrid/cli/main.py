"""Where the `p2pgrid` command begins: imports nothing heavy, so that a Ctrl-C during the imports is one line too."""

import sys


def main() -> None:
    try:
        from p2pgrid.cli.app import run
    except KeyboardInterrupt:
        sys.stderr.write("p2pgrid: interrupted\n")
        sys.exit(1)
    sys.exit(run())
