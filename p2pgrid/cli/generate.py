"""`p2pgrid generate`: one answer, from a swarm or from this process."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.answers import answer_document, local_engine, summary
from p2pgrid.cli.console import print_json, say
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import DEFAULT_MODEL, Bootstrap, Exact, Json, Local, Model, Wire
from p2pgrid.cli.running import run_async
from p2pgrid.cli.values import read_text
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
    presence_penalty: Annotated[float, Parameter(help="-2 to 2: against what the answer says already.")] = 0.0,
    frequency_penalty: Annotated[float, Parameter(help="-2 to 2: the same, for each time that it says it.")] = 0.0,
    json_schema: Annotated[
        Path | None, Parameter(help="A file with a JSON schema; the answer is JSON that fits it.")
    ] = None,
    stop: Annotated[list[str] | None, Parameter(negative=(), help="End before this text; several are fine.")] = None,
    exact: Exact = False,
    wire: Wire = "fp32",
    json: Json = False,
) -> None:
    """Ask a model, and stream its answer.

    Example: p2pgrid generate --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo… "Explain gravity in two sentences."
    """
    sampling = sampling_of(temperature, top_p, top_k, seed, presence_penalty, frequency_penalty)
    schema = "" if json_schema is None else read_text(json_schema)
    request = Request(prompt, raw, max_tokens, sampling, tuple(stop or ()), wire=wire, exact=exact, json_schema=schema)

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
            await asker.grammar_of(request)
            await wait_for_route(peer, description.id, description.manifest.layers)
            return await asker.over_swarm(peer, request, show)

    answer = run_async(main)
    if json:
        print_json(answer_document(answer))
    else:
        sys.stdout.write("\n")
        say(summary(answer))


def sampling_of(
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> Sampling:
    """Raises BadInput naming the option that is out of its range."""
    if not 0 <= temperature <= 100:
        raise BadInput(f"--temperature {temperature}: give 0 to 100")
    if not 0 < top_p <= 1:
        raise BadInput(f"--top-p {top_p}: give more than 0 and at most 1")
    if not 0 <= top_k < 2**31:
        raise BadInput(f"--top-k {top_k}: give 0 (all) or more")
    if not 0 <= seed < 2**63:
        raise BadInput(f"--seed {seed}: give 0 to {2**63 - 1}")
    for option, penalty in (("presence", presence_penalty), ("frequency", frequency_penalty)):
        if not -2 <= penalty <= 2:
            raise BadInput(f"--{option}-penalty {penalty}: give -2 to 2")
    return Sampling(temperature, top_p, top_k, seed, presence_penalty, frequency_penalty)
