"""`p2pgrid score`: how likely a model finds a text, token by token."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.answers import local_engine
from p2pgrid.cli.console import print_json, say
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import DEFAULT_MODEL, Bootstrap, Json, Local, Model
from p2pgrid.cli.running import run_async
from p2pgrid.cli.values import read_text
from p2pgrid.node.answer import ScoredText
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.request import Asker
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.settings import PipelineSettings, StageSettings


def score(
    *,
    text_file: Annotated[Path, Parameter(help="A UTF-8 text.")],
    model: Model = DEFAULT_MODEL,
    bootstrap: Bootstrap = None,
    local: Local = False,
    json: Json = False,
) -> None:
    """Score a text: log-probability of each next token, their mean, and the likeliest token at each position.

    Example: p2pgrid score --text-file essay.txt --local --json
    """
    text = read_text(text_file)

    async def main() -> ScoredText:
        store = model_store()
        if local:
            async with local_engine(store, model) as (asker, stage, executor):
                return await asker.score_locally(stage, executor, text)
        async with open_network(joining(bootstrap)) as peer:
            description = await describe_model(store, model, peer)
            await wait_for_route(peer, description.id, description.manifest.layers)
            return await Asker(description, StageSettings(), PipelineSettings()).score_over_swarm(peer, text)

    scored = run_async(main)
    if json:
        figures = {"next_logprobs": scored.next_logprobs, "mean_nll": scored.mean_nll, "top1": scored.top1}
        print_json({"token_ids": scored.token_ids, **figures})
    else:
        say(f"{len(scored.token_ids)} tokens, mean negative log-likelihood {scored.mean_nll:.4f}")
