"""What a model could do on this machine at best, beside what systems did."""

import math
import statistics
from collections.abc import Mapping, Sequence

from p2pgrid.bench.document import Limit
from p2pgrid.bench.limits import int8_matmul_flops_s, memory_bandwidth_bytes_s
from p2pgrid.bench.scenario import Bench
from p2pgrid.wire.manifest import Manifest, TensorEntry

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"


async def limit_decode(bench: Bench, manifest: Manifest, metric: str, reached: Mapping[str, Sequence[float]]) -> None:
    """Tokens a second when reading the weights were all there is to do. `reached`: samples by system."""
    nbytes = sum(entry.nbytes for entry in computed(manifest))
    limit = await memory_bandwidth_bytes_s() / nbytes
    _tell(bench, metric, limit, f"memory bandwidth over {nbytes / 1e6:.0f} MB of weights a token", reached)


async def limit_prefill(bench: Bench, manifest: Manifest, reached: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Tokens a second when multiplying were all there is to do. `reached`: metric → system → samples."""
    operations = 2 * sum(
        math.prod(entry.shape) for entry in computed(manifest) if entry.name.startswith("blk.") and len(entry.shape) > 1
    )
    limit = await int8_matmul_flops_s() / operations
    for metric, systems in reached.items():
        _tell(bench, metric, limit, f"int8 kernel over {operations / 1e6:.0f} million operations a token", systems)


def computed(manifest: Manifest) -> list[TensorEntry]:
    """What every token needs whole: all but the embedding, unless its table is the head as well."""
    tied = all(entry.name != HEAD for entry in manifest.tensors)
    return [entry for entry in manifest.tensors if tied or entry.name != EMBEDDING]


def _tell(bench: Bench, metric: str, limit: float, what: str, reached: Mapping[str, Sequence[float]]) -> None:
    for system, samples in reached.items():
        if samples:
            share = statistics.median(samples) / limit
            bench.limit(Limit(metric, system, limit, "tokens/s", share, what))
