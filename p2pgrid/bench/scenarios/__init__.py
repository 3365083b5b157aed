"""All scenarios, in the order in which `all` runs them."""

from p2pgrid.bench.scenario import Named
from p2pgrid.bench.scenarios import (
    churn,
    concurrency,
    decode,
    discovery,
    hop,
    links,
    memory,
    prefill,
    recovery,
    startup,
)

ALL: tuple[Named, ...] = (
    decode.SCENARIO,
    prefill.SCENARIO,
    concurrency.SCENARIO,
    startup.SCENARIO,
    memory.SCENARIO,
    discovery.SCENARIO,
    hop.SCENARIO,
    links.SCENARIO,
    recovery.SCENARIO,
    churn.SCENARIO,
)
