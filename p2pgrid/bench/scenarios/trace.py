"""Where the time of one decode step goes, from what the nodes themselves write down of each step."""

import statistics
from collections.abc import Sequence
from functools import partial

from p2pgrid.bench.lineup import prompt_maker
from p2pgrid.bench.runner import Figures
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.step_parts import along_the_route, medians, parts_of, read_trace
from p2pgrid.bench.swarm_system import open_swarm_system
from p2pgrid.bench.systems import System, Timed
from p2pgrid.folders import temporary_folder
from p2pgrid.services.pipeline import Terms
from p2pgrid.swarm.local_swarm import LISTEN

PROMPT_TOKENS = 64
ANSWER_TOKENS = 128
SYSTEM = "swarm"


async def run(bench: Bench) -> None:
    """Nothing is drafted, so that one step is under way at a time. Traces are read once the nodes have ended."""
    maker = await prompt_maker(bench)
    answers: dict[int, Timed] = {}
    with temporary_folder() as folder:
        files = [folder / f"node-{number}.jsonl" for number in range(bench.options.nodes)]

        def arguments_of(number: int) -> Sequence[str]:
            return [*LISTEN, "--trace", str(files[number])]

        async with open_swarm_system(bench.options.model, bench.options.nodes, arguments_of) as swarm:
            exact = swarm.asked_with(SYSTEM, Terms(exact=True))
            for pair in range(-1, bench.options.repeat):
                bench.progress(pair + 1, bench.options.repeat + 1)
                await bench.sample(SYSTEM, pair, partial(_ask, exact, maker.prompt(PROMPT_TOKENS, pair), answers, pair))
        traces = [read_trace(file) for file in files]
    for pair, answer in answers.items():
        if pair >= 0:
            _tell_parts(bench, [trace.get(answer.session, {}) for trace in traces], answer)
    bench.note(
        "codec is from bytes read to a message, and from a result to a frame; link is from there to the handler, and"
        " until the frame is written, encryption included; wire is from then until it is read, decryption included"
    )


async def _ask(system: System, prompt: tuple[int, ...], answers: dict[int, Timed], pair: int) -> Figures:
    timed = answers[pair] = await system.ask(prompt, ANSWER_TOKENS)
    return {"decode_tokens_per_s": (timed.decode_tokens_per_s, "tokens/s")}


def _tell_parts(bench: Bench, stages: Sequence[dict[tuple[str, int], float]], answer: Timed) -> None:
    """The turns of the ring that are whole: the first and the last of an answer are not."""
    positions = range(PROMPT_TOKENS, PROMPT_TOKENS + ANSWER_TOKENS - 2)
    route = along_the_route(stages, positions[0])
    turns = [turn for position in positions if (turn := parts_of(route, position))]
    if not turns:
        bench.note("no step left all its marks in the traces, so that there are no parts of it")
        return
    for metric, value_s in medians(turns, statistics.median(answer.inter_token_latencies_s)).items():
        bench.keep(SYSTEM, metric, "s", [value_s])


SCENARIO = Named("trace", "where the time of one decode step goes, hop by hop", run)
