from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.bench.compare import compare
from p2pgrid.bench.document import Document, Environment, Ratio
from p2pgrid.errors import BadInput

HERE = Environment("CPU", 2, 1, "Linux", "3.11", {}, "abc", "p2pgrid bench all", "2026-01-01", "made-up-model", 0.0)


def ratio(metric: str, median: float, system: str = "swarm", baseline: str = "one_process") -> Ratio:
    return Ratio(metric, system, baseline, (median,), median, median, median)


def document(*ratios: Ratio, scenario: str = "decode", nodes: int = 3) -> Document:
    return Document(1, scenario, nodes, False, True, HERE, (), ratios, ())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "old.json", tmp_path / "new.json"


def compared(
    files: tuple[Path, Path], old: Sequence[Document], new: Sequence[Document], threshold: float = 0.1
) -> list[str]:
    for path, documents in zip(files, (old, new), strict=True):
        path.write_bytes(msgspec.json.encode(documents))
    return compare(*files, threshold)


def test_a_rate_that_fell_got_worse_and_the_line_says_so(files: tuple[Path, Path]) -> None:
    old, new = document(ratio("decode_tokens_per_s", 0.8)), document(ratio("decode_tokens_per_s", 0.6))
    (line,) = compared(files, [old], [new])
    assert line == "decode: decode_tokens_per_s of swarm / one_process got worse by 25%: 0.800 → 0.600"
    assert compared(files, [new], [old]) == []


@pytest.mark.parametrize("metric", ["ttft_s", "ttft_s@512", "cpu_s_per_token", "pss_bytes"])
def test_times_and_bytes_that_grew_got_worse(files: tuple[Path, Path], metric: str) -> None:
    old, new = document(ratio(metric, 1.0)), document(ratio(metric, 1.5))
    assert len(compared(files, [old], [new])) == 1
    assert compared(files, [new], [old]) == []


def test_what_got_worse_by_less_than_the_threshold_is_fine(files: tuple[Path, Path]) -> None:
    old, new = document(ratio("ttft_s", 1.0)), document(ratio("ttft_s", 1.09))
    assert compared(files, [old], [new]) == []
    assert len(compared(files, [old], [new], threshold=0.08)) == 1


def test_a_rate_that_fell_to_nothing_is_no_less_comparable(files: tuple[Path, Path]) -> None:
    old, new = document(ratio("decode_tokens_per_s", 0.8)), document(ratio("decode_tokens_per_s", 0.0))
    assert "got worse by 100%" in compared(files, [old], [new])[0]


def test_only_what_both_measured_alike_is_compared(files: tuple[Path, Path]) -> None:
    """Another scenario, number of nodes, system, baseline or prompt's length is another figure."""
    rate = ratio("decode_tokens_per_s@8", 1.0)
    for other in (
        document(rate, scenario="links"),
        document(rate, nodes=5),
        document(ratio("decode_tokens_per_s@8", 1.0, system="star")),
        document(ratio("decode_tokens_per_s@8", 1.0, baseline="star")),
        document(ratio("decode_tokens_per_s@16", 1.0)),
        document(ratio("recovered@25", 1.0)),
        document(),
    ):
        with pytest.raises(BadInput, match="no ratios in common"):
            compared(files, [document(rate)], [other])
    worse = ratio("decode_tokens_per_s@8", 0.1)
    assert len(compared(files, [document(rate)], [document(rate, scenario="links"), document(worse)])) == 1


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_is_a_share(files: tuple[Path, Path], threshold: float) -> None:
    same = [document(ratio("ttft_s", 1.0))]
    with pytest.raises(BadInput, match="--threshold"):
        compared(files, same, same, threshold)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 1000), st.floats(0.001, 1000), st.floats(0, 5))
def test_never_do_both_directions_of_one_change_get_worse(
    tmp_path_factory: pytest.TempPathFactory, a: float, b: float, threshold: float
) -> None:
    folder = tmp_path_factory.mktemp("both")
    files = folder / "old.json", folder / "new.json"
    for metric in ("decode_tokens_per_s", "ttft_s"):
        one, other = [document(ratio(metric, a))], [document(ratio(metric, b))]
        assert not (compared(files, one, other, threshold) and compared(files, other, one, threshold))
