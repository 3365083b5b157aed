"""`p2pgrid bootstrap`: a DHT server and nothing else."""

from p2pgrid.cli.console import print_json, say, show
from p2pgrid.cli.options import Ephemeral, Json, Listen, StateFile, UntilStdinCloses
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.net.libp2p_transport import open_libp2p
from p2pgrid.node.state_file import own_state, write_json
from p2pgrid.node.wiring import own_identity

LISTEN = "/ip4/0.0.0.0/tcp/4001"


def bootstrap(
    *,
    listen: Listen = None,
    ephemeral: Ephemeral = False,
    state: StateFile = None,
    until_stdin_closes: UntilStdinCloses = False,
    json: Json = False,
) -> None:
    """Run a bootstrap peer: others join the network through it. It holds no model and sees no prompt.

    Prints its multiaddr, which others give to --bootstrap. Runs until Ctrl-C.

    Example: p2pgrid bootstrap --listen /ip4/127.0.0.1/tcp/4001
    """

    async def main() -> None:
        with own_identity("bootstrap", ephemeral=ephemeral) as identity:
            async with open_libp2p(identity, listen or [LISTEN], [], dht_server=True) as transport:
                now = own_state(transport.peer, transport.addresses, "serving", None)
                if state is not None:
                    write_json(state, now)
                if json:
                    print_json(now)
                else:
                    say("bootstrap peer up; others join with:")
                    for address in transport.addresses:
                        show(f"  --bootstrap {address}")
                await until_told_to_stop(until_stdin_closes=until_stdin_closes)
        say("bootstrap peer down")

    run_async(main)
