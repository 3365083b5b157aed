"""What becomes of an answer when a stage is killed and no node is left that holds its layers: one has to move."""

import trio

from p2pgrid.bench.hearing import Heard, hear
from p2pgrid.bench.processes import Crew, open_crew, state_of
from p2pgrid.bench.scenario import Bench, Named
from p2pgrid.bench.scenarios.recovery import ANSWER_TOKENS, SERVE_S_MAX, outcome_of, prompt_of, serving
from p2pgrid.errors import LocalFault
from p2pgrid.node.client import wait_for_route
from p2pgrid.node.wiring import describe_model, model_store, open_network
from p2pgrid.swarm.processes import Member, wait_for_phase

AT_SHARE = 0.5
GAP_S_MAX = 15.0
SYSTEM = "swarm"


async def run(bench: Bench) -> None:
    options = bench.options
    description = await describe_model(model_store(), options.model)
    layers, stages = description.manifest.layers, options.nodes
    span_max = -(-layers // stages)
    prompt = prompt_of(description)
    try:
        async with open_crew() as crew, open_network(crew.bootstrap) as client:
            calm: Heard | None = None
            for round_ in range(options.repeat):
                bench.progress(round_, options.repeat)
                while len(crew.living) < stages + 1:
                    await _start(crew, options.model, span_max)
                await wait_for_route(client, description.id, layers)
                calm = calm or await hear(client, description, prompt, ANSWER_TOKENS)
                if calm.error is not None:
                    raise calm.error
                striker = _Striker(crew)
                heard = await hear(client, description, prompt, ANSWER_TOKENS, striker.on_token)
                await striker.keep(bench, heard, calm)
            bench.progress(options.repeat, options.repeat)
        bench.note(crew.last_note())
    finally:
        bench.require("complete_and_equal", SYSTEM, at_least=1.0)
        bench.require("gap_s", SYSTEM, at_most=GAP_S_MAX)
    bench.note(f"{stages + 1} nodes of at most {span_max} layers; the only one with some of them is killed")


async def _start(crew: Crew, model: str, span_max: int) -> None:
    """A node that chooses its layers, once it serves. Raises LocalFault when it does not."""
    with trio.move_on_after(SERVE_S_MAX):
        await wait_for_phase(await crew.start_free_node(model, span_max), "serving")
        return
    raise LocalFault(f"a node did not serve within {SERVE_S_MAX:.0f} s: is the machine overloaded?")


class _Striker:
    """Kills a node of the route that is the only one with its layers."""

    def __init__(self, crew: Crew) -> None:
        self.victim: Member | None = None
        self.at_s = 0.0
        self._crew = crew

    def on_token(self, heard: Heard) -> None:
        if self.victim is not None or len(heard.token_ids) < AT_SHARE * ANSWER_TOKENS:
            return
        spans = list(serving(self._crew).values())
        route = {hop.peer for hop in heard.route}
        for member in self._crew.living:
            state = state_of(member, "serving")
            if state is None or state.peer_id not in route or state.layers is None:
                continue
            if sum(span.start < state.layers[1] and state.layers[0] < span.stop for span in spans) == 1:
                self.victim, self.at_s = member, trio.current_time()
                member.process.kill()
                return

    async def keep(self, bench: Bench, heard: Heard, calm: Heard) -> None:
        """What became of the answer."""
        if self.victim is None:
            bench.note("an answer did not run through the only holder of any layers, and does not count")
            return
        await self.victim.process.wait()
        outcome = outcome_of(heard, self.at_s, calm.token_ids)
        whole = outcome.recovered and outcome.tokens_equal == outcome.answered_share == 1.0
        bench.keep(SYSTEM, "complete_and_equal", "share", [float(whole)])
        bench.keep(SYSTEM, "gap_s", "s", [outcome.after_s] if outcome.recovered else [])


SCENARIO = Named("heal", "the only node with some layers is killed in the middle of an answer", run)
