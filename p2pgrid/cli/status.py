"""`p2pgrid status`: the swarm as this machine sees it."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from p2pgrid.cli.console import print_json, show, stdout
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import Bootstrap, Json
from p2pgrid.cli.running import run_async
from p2pgrid.node.survey import ask_around, examine, survey_document
from p2pgrid.node.wiring import known_models, model_store, open_network, resolve_model


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
            await ask_around(peer, models)
            found = [await examine(peer, known, names.get(known)) for known in models]
        return [survey_document(each) for each in found if each.adverts or model is not None]

    models = run_async(main)
    if json:
        print_json({"models": models})
    else:
        _show(models)
    return 0 if models and all(each["served"] for each in models) else 1


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
            table.add_row(node["peer_id"], layers, "away" if node["away"] else node["state"], *figures, address)
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
