"""All scenarios, in the order in which `all` runs them."""

from p2pgrid.bench.scenario import Named
from p2pgrid.bench.scenarios import (
    churn,
    concurrency,
    decode,
    discovery,
    drain,
    formats,
    gateway,
    heal,
    hop,
    links,
    memory,
    overload,
    prefill,
    prefix,
    recovery,
    speculation,
    startup,
    trace,
)

ALL: tuple[Named, ...] = (
    decode.SCENARIO,
    trace.SCENARIO,
    prefill.SCENARIO,
    prefix.SCENARIO,
    concurrency.SCENARIO,
    overload.SCENARIO,
    startup.SCENARIO,
    memory.SCENARIO,
    discovery.SCENARIO,
    hop.SCENARIO,
    links.SCENARIO,
    formats.SCENARIO,
    speculation.SCENARIO,
    recovery.SCENARIO,
    drain.SCENARIO,
    heal.SCENARIO,
    gateway.SCENARIO,
    churn.SCENARIO,
)
