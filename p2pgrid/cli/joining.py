"""Which bootstrap peers a command joins through."""

from p2pgrid.cli.console import say
from p2pgrid.node.wiring import default_bootstrap


def joining(given: list[str] | None) -> list[str]:
    """The bootstrap peers given, else those that ship with p2pgrid; says so when there are none at all."""
    peers = given or default_bootstrap()
    if not peers:
        say("no bootstrap peer is known: searching the local network; name one with --bootstrap ADDRESS")
    return peers
