"""`p2pgrid serve`: the swarm behind an HTTP address that OpenAI's clients understand."""

from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.console import print_json, say, show
from p2pgrid.cli.gateways import plan_gateway, run_gateway
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import Bootstrap, Json, StateFile, UntilStdinCloses
from p2pgrid.cli.running import run_async, until_told_to_stop
from p2pgrid.node.state_file import own_state, write_json
from p2pgrid.node.wiring import model_store, open_network


def serve(
    *,
    bootstrap: Bootstrap = None,
    listen: Annotated[str, Parameter(help="HOST:PORT; port 0 = any free one.")] = "127.0.0.1:8080",
    model: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Answer with this model, by name or id; several are fine. Default: all known."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            env_var="P2PGRID_API_KEY",
            help="A key that clients must send, good for everything; several are fine. Others see a command's options:"
            " better set the variable, or make keys with `p2pgrid keys add`.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Let pages of this origin, like https://chat.example, call from a browser."),
    ] = None,
    state: StateFile = None,
    until_stdin_closes: UntilStdinCloses = False,
    json: Json = False,
) -> None:
    """Answer programs that speak to OpenAI, and browsers, with the swarm's models. Holds no weights.

    Prints the address: give it to a client as its base URL. Clients need a key as soon as `p2pgrid keys add` has made
    one, and always where others than this machine can reach it. Runs until Ctrl-C.

    Example: p2pgrid serve --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo… --listen 127.0.0.1:8080
    """
    plan = plan_gateway(listen, "--listen", api_keys=api_key, models=model, cors=cors)

    async def main() -> None:
        peers = joining(bootstrap)
        async with open_network(peers) as peer, run_gateway(plan, peer, model_store(), peers) as url:
            now = own_state(peer.transport.peer, peer.transport.addresses, "serving", None, url)
            if state is not None:
                write_json(state, now)
            if json:
                print_json(now)
            else:
                say("gateway up; browsers open the first, clients use the second:")
                show(f"  {url}/\n  {url}/v1")
            await until_told_to_stop(until_stdin_closes=until_stdin_closes)
        say("gateway down")

    run_async(main)
