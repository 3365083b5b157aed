"""Where the `p2pgrid` command begins and ends. Imports nothing heavy: a Ctrl-C during the imports is one line too."""

import gc
import sys


def main() -> None:
    try:
        from p2pgrid.cli.app import run
    except KeyboardInterrupt:
        sys.stderr.write("p2pgrid: interrupted\n")
        sys.exit(1)
    status = run()
    # What we opened is closed. Python would go through all that libp2p and its kind imported once more, several times
    # over, in search of cycles: 0.6 s of computing in each of a swarm's processes, all of which end at once.
    gc.freeze()
    sys.exit(status)
