"""All scenarios, in the order in which `all` runs them."""

from p2pgrid.bench.scenario import Named
from p2pgrid.bench.scenarios import concurrency, decode, memory, prefill, startup

ALL: tuple[Named, ...] = (
    decode.SCENARIO,
    prefill.SCENARIO,
    concurrency.SCENARIO,
    startup.SCENARIO,
    memory.SCENARIO,
)
