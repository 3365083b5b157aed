"""What the machine can do: the order of magnitude is all that a test can know of it."""

from types import SimpleNamespace

import pytest

from p2pgrid.bench import limits


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEASURE_S", 0.0)


async def test_memory_is_read_at_a_speed_that_memory_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BYTES_READ", 64 * 1024 * 1024)
    assert 1e8 < await limits.memory_bandwidth_bytes_s() < 1e13


async def test_the_kernel_multiplies_at_a_speed_that_processors_have() -> None:
    assert 1e8 < await limits.int8_matmul_flops_s() < 1e15


async def test_the_shortest_go_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 5.0, 10.0, 11.0, 20.0, 29.0))
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    async def work() -> None: ...

    assert await limits._best_s(work) == 1.0
