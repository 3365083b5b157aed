"""`p2pgrid status`: the swarm as this machine sees it."""

from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from p2pgrid.cli.console import print_json, show, stdout
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import Bootstrap, Json
from p2pgrid.cli.running import run_async
from p2pgrid.core.health import CANARY_S_MAX, Health, health, layers_of
from p2pgrid.core.throughput import throughput_bound, tokens_per_s
from p2pgrid.errors import P2pgridError
from p2pgrid.ids import ModelId
from p2pgrid.node.canary import send_canary
from p2pgrid.node.peer import Peer
from p2pgrid.node.wiring import known_models, model_store, open_network, resolve_model
from p2pgrid.wire.adverts import Advert

PEERS_MAX = 64
"""So many nodes are asked whether they are there; what is said of others is what those say."""


def status(
    *,
    bootstrap: Bootstrap = None,
    model: Annotated[str | None, Parameter(help="Only this model. Default: every known one.")] = None,
    json: Json = False,
) -> int:
    """Show whether models can be used and why not, the nodes with their layers, and what the swarm could give.

    A model is ready when a token went through a whole route in the last minute and every layer has a replica. If
    nobody has seen such a token, this command sends one through. Ends with status 1 when a model is unavailable.

    Example: p2pgrid status --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…
    """

    async def main() -> list[dict[str, Any]]:
        store = model_store()
        names = known_models(store)
        models = [resolve_model(store, model)] if model is not None else sorted(names)
        async with open_network(joining(bootstrap)) as peer:
            for look_up in (True, False):  # providers are found in the first round, whom they know in the second
                for known in models:
                    await peer.discovery.refresh(known, look_up=look_up, peers_max=PEERS_MAX)
            found = [await _describe(peer, known, names.get(known)) for known in models]
        return [each for each in found if each["nodes"] or model is not None]

    models = run_async(main)
    if json:
        print_json({"models": models})
    else:
        _show(models)
    return 0 if models and all(each["served"] for each in models) else 1


async def _describe(peer: Peer, model: ModelId, name: str | None) -> dict[str, Any]:
    found, layers, own_token = await _examine(peer, model)
    adverts = peer.view.adverts(model)
    return {
        "model": name or next((a.model_name for a in adverts if a.model_name), model[:12]),
        "model_id": model,
        "layers": layers,
        "health": found.state,
        "reasons": list(found.reasons),
        "served": found.state != "unavailable",
        "missing": [[s.start, s.stop] for s in found.missing],
        "replicas_min": found.replicas_min,
        "canary_age_s": None if found.canary_age_s is None else round(found.canary_age_s, 1),
        "canary_by": None if found.canary_age_s is None else "status" if own_token else "swarm",
        "tokens_per_s": round(tokens_per_s(adverts, layers), 1),
        "tokens_per_s_bound": round(throughput_bound(adverts, layers), 1),
        "nodes": [_node(a) for a in adverts],
    }


async def _examine(peer: Peer, model: ModelId) -> tuple[Health, int, bool]:
    """The model's health, its layers, and whether we had to send a token through ourselves to know it."""

    def look(seen_at_s: float) -> tuple[Health, int]:
        adverts = peer.view.adverts(model)
        layers = layers_of(adverts)
        return health(adverts, layers, peer.discovery.now_s(), seen_at_s), layers

    found, layers = look(0.0)
    if found.state == "unavailable" or (found.canary_age_s is not None and found.canary_age_s <= CANARY_S_MAX):
        return found, layers, False
    try:
        await send_canary(peer, model, layers)
    except P2pgridError as error:
        found, layers = look(0.0)  # whom it has lost is no longer in the view
        if found.state == "unavailable":
            return found, layers, False
        return _also(found, f"one that was sent just now was lost: {error}"), layers, False
    return *look(peer.discovery.now_s()), True


def _also(found: Health, reason: str) -> Health:
    return replace(found, reasons=(*found.reasons, reason))


def _node(advert: Advert) -> dict[str, Any]:
    return {
        "peer_id": advert.peer,
        "addresses": list(advert.addresses),
        "state": advert.state,
        "layers": None if advert.span is None else [advert.span.start, advert.span.stop],
        "moving_to": None if advert.moving_to is None else [advert.moving_to.start, advert.moving_to.stop],
        "step_ms": round(advert.step_ms, 3),
        "queue_ms": round(advert.queue_ms, 3),
        "sessions_free": advert.sessions_free,
        "tokens_per_s": round(advert.tokens_per_s, 1),
        "tokens_per_s_max": round(advert.tokens_per_s_max, 1),
        "agent": advert.agent,
    }


def _show(models: list[dict[str, Any]]) -> None:
    if not models:
        show("no node was found; start one with: p2pgrid node --bootstrap ADDR")
    for each in models:
        table = Table(title=f"{each['model']}: {_verdict(each)}", title_justify="left")
        for column in ("node", "layers", "state", "ms a step + queue", "tokens/s", "free", "address"):
            table.add_column(column, overflow="fold")
        for node in each["nodes"]:
            layers = "-" if node["layers"] is None else _span(node["layers"])
            if node["moving_to"] is not None:
                layers += f", soon {_span(node['moving_to'])}"
            address = node["addresses"][0].split("/p2p/")[0] if node["addresses"] else "-"
            ms = f"{node['step_ms']:.1f} + {node['queue_ms']:.1f}"
            figures = (ms, f"{node['tokens_per_s']:.0f}/{node['tokens_per_s_max']:.0f}", str(node["sessions_free"]))
            table.add_row(node["peer_id"], layers, node["state"], *figures, address)
        stdout.print(table)
        if each["served"]:
            show(f"{each['tokens_per_s']:.0f} tokens/s now, at most {each['tokens_per_s_bound']:.0f}; {_canary(each)}")


def _verdict(model: dict[str, Any]) -> str:
    return f"{model['health']}" + "".join(f"\n  {reason}" for reason in model["reasons"])


def _canary(model: dict[str, Any]) -> str:
    if model["canary_age_s"] is None:
        return "no token was seen to go through"
    if model["canary_by"] == "status":
        return "the token that this command sent went through all layers"
    return f"a token went through all layers {model['canary_age_s']:.0f} s ago"


def _span(layers: list[int]) -> str:
    return f"{layers[0]}:{layers[1]}"
