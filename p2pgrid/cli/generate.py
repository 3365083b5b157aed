"""`p2pgrid generate`: one answer, from a swarm or from this process."""

import sys
from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.answers import answer_document, local_engine, summary
from p2pgrid.cli.console import print_json, say
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import DEFAULT_MODEL, Bootstrap, Exact, Json, Local, Model, Wire
from p2pgrid.cli.running import run_async
from p2pgrid.errors import BadInput
from p2pgrid.node.answer import Answer, Piece
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.request import Asker, Request
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.wire.messages import Sampling


def generate(
    prompt: Annotated[str, Parameter(help="What to ask.")],
    *,
    model: Model = DEFAULT_MODEL,
    bootstrap: Bootstrap = None,
    local: Local = False,
    raw: Annotated[bool, Parameter(negative=(), help="Give the prompt as it stands, without chat template.")] = False,
    max_tokens: int = 256,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest token.")] = 0.0,
    top_p: float = 1.0,
    top_k: Annotated[int, Parameter(help="0 = all.")] = 0,
    seed: int = 0,
    stop: Annotated[list[str] | None, Parameter(negative=(), help="End before this text; several are fine.")] = None,
    exact: Exact = False,
    wire: Wire = "fp32",
    json: Json = False,
) -> None:
    """Ask a model, and stream its answer.

    Example: p2pgrid generate --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo… "What is the capital of France?"
    """
    request = Request(
        prompt, raw, max_tokens, sampling_of(temperature, top_p, top_k, seed), tuple(stop or ()), wire=wire, exact=exact
    )

    def show(piece: Piece) -> None:
        if not json:
            sys.stdout.write(piece.text)
            sys.stdout.flush()

    async def main() -> Answer:
        store = model_store()
        if local:
            async with local_engine(store, model) as (asker, stage, executor):
                return await asker.locally(stage, executor, request, show)
        async with open_network(joining(bootstrap)) as peer:
            description = await describe_model(store, model, peer)
            asker = Asker(description, StageSettings(), PipelineSettings())
            asker.check(request)
            await wait_for_route(peer, description.id, description.manifest.layers)
            return await asker.over_swarm(peer, request, show)

    answer = run_async(main)
    if json:
        print_json(answer_document(answer))
    else:
        sys.stdout.write("\n")
        say(summary(answer))


def sampling_of(temperature: float, top_p: float, top_k: int, seed: int) -> Sampling:
    """Raises BadInput naming the option that is out of its range."""
    if not 0 <= temperature <= 100:
        raise BadInput(f"--temperature {temperature}: give 0 to 100")
    if not 0 < top_p <= 1:
        raise BadInput(f"--top-p {top_p}: give more than 0 and at most 1")
    if not 0 <= top_k < 2**31:
        raise BadInput(f"--top-k {top_k}: give 0 (all) or more")
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed {seed}: give 0 to {2**63 - 1}")
    return Sampling(temperature, top_p, top_k, seed)
