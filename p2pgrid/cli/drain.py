"""`p2pgrid drain`: have a node of this machine hand its sessions over and leave."""

from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.console import print_json, say
from p2pgrid.cli.options import Json
from p2pgrid.cli.running import run_async
from p2pgrid.errors import BadInput
from p2pgrid.node.control import DRAIN_S_MAX, ask_to_drain
from p2pgrid.storage.paths import control_dir


def drain(
    peer: Annotated[str, Parameter(help="The node's peer id, or the end of it.")] = "",
    *,
    own: Annotated[bool, Parameter("--self", negative=(), help="The one node that runs here.")] = False,
    within: Annotated[float, Parameter(help="Seconds after which what is left is ended.")] = 30.0,
    json: Json = False,
) -> None:
    """Have a node of this machine hand its sessions over to others, and leave.

    It takes no new session from now on. Answers that run through it go on elsewhere, without a token computed twice.

    Example: p2pgrid drain --self
    """
    if bool(peer) == own:
        raise BadInput("say which node: its PEER id, or --self if only one runs here")
    if not 0 <= within <= DRAIN_S_MAX:
        raise BadInput(f"--within {within:g}: give 0 to {DRAIN_S_MAX:.0f} seconds")

    told: list[int] = []

    def tell(sessions: int) -> None:
        told.append(sessions)
        if not json:
            say(f"{sessions} session(s) left" if sessions else "no session left; leaving")

    run_async(lambda: ask_to_drain(control_dir(), peer, within, tell))
    if json:
        print_json({"left": True, "sessions": max(told, default=0)})
    else:
        say("left")
