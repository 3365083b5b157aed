"""`p2pgrid sim`: replay a simulated swarm from its seed."""

from typing import Annotated

from cyclopts import Parameter

from p2pgrid.cli.console import print_json, say, show
from p2pgrid.cli.options import Json
from p2pgrid.errors import BadInput

NODES_MAX = 200


def sim(
    *,
    seed: int = 0,
    nodes: Annotated[int, Parameter(help="How many simulated nodes.")] = 5,
    requests: Annotated[int, Parameter(help="How many requests are asked at once.")] = 3,
    storm: Annotated[
        bool,
        Parameter(negative=(), help="Have nodes killed, frozen, stalled and cut off; the seed decides everything."),
    ] = False,
    trace: Annotated[bool, Parameter(negative=(), help="Show every event.")] = False,
    json: Json = False,
) -> int:
    """Simulate a whole swarm in this process, on a virtual clock, from one seed.

    Real discovery, links, workers and pipelines over a network in memory, with a toy stage for the model. The
    same seed gives the same events in the same order: the printed trace hash says so. Ends with status 1 when
    an answer differs from the one that a single process gives.

    With --storm much goes wrong, but of every span of layers one node stays untouched: every request must be answered.

    Example: p2pgrid sim --seed 7 --nodes 8
    """
    if not 1 <= nodes <= NODES_MAX:
        raise BadInput(f"--nodes {nodes}: give 1 to {NODES_MAX}")
    if requests < 1:
        raise BadInput(f"--requests {requests}: give at least 1")
    from p2pgrid.sim.plan import Plan
    from p2pgrid.sim.storm import plan_storm
    from p2pgrid.sim.world import simulate, undisturbed

    plan = plan_storm(seed) if storm else Plan(nodes=nodes, requests=requests)
    report = simulate(seed, plan)
    right = [
        o.error is None and o.token_ids == t for o, t in zip(report.outcomes, undisturbed(seed, plan), strict=True)
    ]
    if json:
        document = {"seed": seed, "nodes": plan.nodes, "trace_hash": report.trace_hash, "virtual_s": report.virtual_s}
        spans = [None if span is None else [span.start, span.stop] for span in report.spans]
        outcomes = {
            "errors": [o.error for o in report.outcomes],
            "recoveries": [o.recoveries for o in report.outcomes],
        }
        print_json({**document, "spans": spans, "right": right, **outcomes})
    else:
        for line in report.trace if trace else []:
            say(line)
        spans_said = ", ".join(str(span) for span in report.spans)
        say(f"{plan.nodes} nodes hold layers {spans_said}")
        for fault in plan.faults:
            say(str(fault))
        healed = sum(o.recoveries for o in report.outcomes)
        say(f"{sum(right)} of {len(right)} answers are those of one process, {healed} losses on the way;")
        say(f"{report.virtual_s:.2f} virtual seconds")
        show(f"trace {report.trace_hash}")
    return 0 if all(right) else 1
