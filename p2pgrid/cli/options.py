"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from p2pgrid.storage.catalogue import DEFAULT_MODEL as DEFAULT_MODEL
from p2pgrid.wire.messages import WireChoice

Model = Annotated[str, Parameter("--model", help="A model's name (see `p2pgrid models list`) or its 64-digit id.")]
Bootstrap = Annotated[
    list[str] | None,
    Parameter(
        "--bootstrap",
        negative=(),
        help="Multiaddr of a peer to join through, ending in /p2p/ID. May be given several times; without any,"
        " the list that ships with p2pgrid is used, and then the local network is searched.",
    ),
]
Listen = Annotated[
    list[str] | None,
    Parameter("--listen", negative=(), help="Multiaddr to listen on; port 0 = any free one."),
]
Announce = Annotated[
    list[str] | None,
    Parameter(
        "--announce",
        negative=(),
        help="Multiaddr at which others can dial this node, instead of those it listens on: for a node behind a"
        " port forward. Like /ip4/192.0.2.1/tcp/4001; may be given several times.",
    ),
]
Json = Annotated[bool, Parameter("--json", negative=(), help="Print one JSON document on stdout.")]
StateFile = Annotated[
    Path | None, Parameter("--state", help="Keep a JSON file with process id, peer id, addresses and layers.")
]
UntilStdinCloses = Annotated[
    bool, Parameter("--until-stdin-closes", negative=(), help="Stop when standard input ends: for supervisors.")
]
Ephemeral = Annotated[
    bool, Parameter("--ephemeral", negative=(), help="Use a new identity that is forgotten at the end.")
]
GatewayAt = Annotated[
    str | None,
    Parameter(
        "--gateway",
        negative=(),
        help="Also answer OpenAI's clients at this HOST:PORT, like 127.0.0.1:8080; port 0 = any free one.",
    ),
]
Local = Annotated[bool, Parameter("--local", negative=(), help="Run the whole model in this process, no network.")]
Exact = Annotated[
    bool,
    Parameter("--exact", negative=(), help="Compute each token before the next one is begun: no speculative decoding."),
]
Wire = Annotated[
    WireChoice,
    Parameter("--wire", help="How stages send each other hidden states; auto = by what each link carries."),
]
