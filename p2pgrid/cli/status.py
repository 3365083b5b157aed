"""`p2pgrid status`: the swarm as this machine sees it."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from p2pgrid.cli.console import print_json, show, stdout
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import Bootstrap, Json
from p2pgrid.cli.running import run_async
from p2pgrid.core.routing import find_route
from p2pgrid.core.swarm_view import missing_layers, replicas
from p2pgrid.errors import NoRoute
from p2pgrid.ids import ModelId
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import known_models, model_store, open_network, resolve_model
from p2pgrid.wire.adverts import Advert

ROUNDS = 2
"""Providers are found in the first round, the peers that they know in the second."""


def status(
    *,
    bootstrap: Bootstrap = None,
    model: Annotated[str | None, Parameter(help="Only this model. Default: every known one.")] = None,
    json: Json = False,
) -> int:
    """Show the nodes, the layers that they hold, their speed and state, and whether every layer is covered.

    Ends with status 1 when a model is not fully served.

    Example: p2pgrid status --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…
    """

    async def main() -> list[dict[str, Any]]:
        store = model_store()
        names = known_models(store)
        models = [resolve_model(store, model)] if model is not None else sorted(names)
        async with open_network(joining(bootstrap)) as peer:
            for _ in range(ROUNDS):
                for known in models:
                    await peer.discovery.refresh(known)
            found = [_describe(peer, known, names.get(known)) for known in models]
        return [each for each in found if each["nodes"] or model is not None]

    models = run_async(main)
    if json:
        print_json({"models": models})
    else:
        _show(models)
    return 0 if models and all(each["served"] for each in models) else 1


def _describe(peer: Peer, model: ModelId, name: str | None) -> dict[str, Any]:
    adverts = peer.view.adverts(model)
    layers = max((a.layers for a in adverts), default=0)
    spans = [a.span for a in adverts if a.state == "serving" and a.span is not None]
    try:
        served = layers > 0 and bool(find_route(adverts, layers))
    except NoRoute:
        served = False
    return {
        "model": name or next((a.model_name for a in adverts if a.model_name), model[:12]),
        "model_id": model,
        "layers": layers,
        "served": served,
        "missing": [[s.start, s.stop] for s in missing_layers(spans, layers)],
        "replicas_min": min(replicas(spans, layers), default=0),
        "nodes": [_node(a) for a in adverts],
    }


def _node(advert: Advert) -> dict[str, Any]:
    return {
        "peer_id": advert.peer,
        "addresses": list(advert.addresses),
        "state": advert.state,
        "layers": None if advert.span is None else [advert.span.start, advert.span.stop],
        "step_ms": round(advert.step_ms, 3),
        "sessions_free": advert.sessions_free,
        "agent": advert.agent,
    }


def _show(models: list[dict[str, Any]]) -> None:
    if not models:
        show("no node was found; start one with: p2pgrid node --bootstrap ADDR")
    for each in models:
        table = Table(title=f"{each['model']}: {_verdict(each)}", title_justify="left")
        for column in ("node", "layers", "state", "ms a step", "free sessions", "address"):
            table.add_column(column, overflow="fold")
        for node in each["nodes"]:
            layers = "-" if node["layers"] is None else f"{node['layers'][0]}:{node['layers'][1]}"
            address = node["addresses"][0].split("/p2p/")[0] if node["addresses"] else "-"
            figures = (f"{node['step_ms']:.1f}", str(node["sessions_free"]))
            table.add_row(node["peer_id"], layers, node["state"], *figures, address)
        stdout.print(table)


def _verdict(model: dict[str, Any]) -> str:
    if model["served"]:
        return f"all {model['layers']} layers are served, each by at least {model['replicas_min']} node(s)"
    if model["missing"]:
        return "not served, missing layers " + ", ".join(f"{a}:{b}" for a, b in model["missing"])
    return "not served: no chain of stages covers the model"
