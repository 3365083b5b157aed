import re
import statistics
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from p2pgrid.bench import plots
from p2pgrid.bench.document import Document, Environment, Limit, Ratio, Row
from p2pgrid.bench.report import read_documents, write_report
from p2pgrid.errors import BadInput, LocalFault

HERE = Environment(
    cpu="Made-up CPU",
    cores=2,
    memory_bytes=24 * 2**30,
    system="Linux",
    python="3.11.0",
    versions={"numpy": "2.0"},
    commit="abc",
    command="p2pgrid bench all --quick",
    started_at="2026-01-01T00:00:00Z",
    model="made-up-model",
    foreign_cpu_share_max=0.07,
)


def row(system: str, metric: str, unit: str, *samples: float) -> Row:
    return Row(system, metric, unit, samples, statistics.median(samples), min(samples), max(samples), thrown_out=3)


def document(scenario: str, rows: Sequence[Row] = (), **fields: object) -> Document:
    whole = Document(1, scenario, 3, False, True, HERE, tuple(rows), (), ())
    return msgspec.structs.replace(whole, **fields)


EVERYTHING = [
    document(
        "decode",
        [
            row("swarm", "decode_tokens_per_s", "tokens/s", 60, 71, 73),
            row("one_process", "decode_tokens_per_s", "tokens/s", 100, 101, 110),
            row("star", "decode_tokens_per_s", "tokens/s", 50, 51, 55),
            row("llama_cpp", "decode_tokens_per_s", "tokens/s", 95, 99, 104),
            row("swarm", "ttft_s", "s", 0.0123, 0.0125),
        ],
        ratios=(Ratio("decode_tokens_per_s", "swarm", "one_process", (0.7, 0.71), 0.705, 0.7, 0.71),),
        limits=(Limit("decode_tokens_per_s", "swarm", 270.0, "tokens/s", 0.263, "reading weights at 30 GB/s"),),
        notes=("a note with | and <b>",),
    ),
    document(
        "prefill",
        [
            row(system, f"prefill_tokens_per_s@{tokens}", "tokens/s", base * 0.9, base, base * 1.05)
            for system, base in (("swarm", 700.0), ("one_process", 900.0), ("llama_cpp", 350.0))
            for tokens in (128, 512, 2048)
        ],
    ),
    document(
        "concurrency",
        [
            row(system, f"{metric}_tokens_per_s@{clients}", "tokens/s", base * 0.9, base, base * 1.1)
            for metric in ("total", "client")
            for system, most in (("swarm", 120.0), ("llama_cpp", 90.0))
            for clients in (1, 2, 4, 8, 16, 32)
            for base in ([most * clients / (clients + 2)] if metric == "total" else [most / (clients + 2)])
        ],
    ),
    document(
        "hop",
        [
            row(system, f"hop_s@{size}", "s", base * 0.8, base, base * 3)
            for system, start in (("swarm", 0.0008), ("plain_tcp", 0.0002))
            for size in (1_024, 16_384, 65_500, 1_048_576, 4_194_304)
            for base in [start + size / 120e6]
        ],
    ),
    document(
        "links",
        [
            row("swarm", f"{metric}@{profile}", unit, value * 0.95, value, value * 1.1)
            for metric, unit, scale in (("decode_tokens_per_s", "tokens/s", 1.0), ("ttft_s", "s", 0.01))
            for profile, speed in (("none", 70.0), ("lan", 55.0), ("metro", 30.0), ("wan", 3.1), ("mobile", 4.0))
            for value in [speed * scale]
        ]
        + [
            row(system, f"prefill_tokens_per_s@128{profile}", "tokens/s", speed)
            for system, profile, speed in (("one_process", "", 800), ("swarm", "@lan", 500), ("swarm", "@wan", 90))
        ],
    ),
    document(
        "discovery",
        [
            row("swarm", f"{metric}@{nodes}", "s", base * nodes * 0.7, base * nodes, base * nodes * 1.8)
            for metric, base in (
                ("join_s", 0.03),
                ("publish_s", 0.02),
                ("lookup_s", 0.01),
                ("lookup_after_kill_s", 0.05),
            )
            for nodes in (10, 25, 50)
        ],
    ),
    document(
        "prefix",
        [
            row("swarm", f"{metric}@{kind}", unit, value * factor)
            for metric, unit, factor in (("ttft_s", "s", 1.0), ("computed_positions", "positions", 1000.0))
            for kind, value in (("first", 0.9), ("second", 0.1), ("other_scope", 0.95), ("next_turn", 0.2))
        ],
    ),
    document(
        "formats",
        [row(form, "ttft_s@512", "s", value) for form, value in (("fp32", 1.2), ("fp16", 0.8), ("int8", 0.6))],
    ),
    document(
        "speculation",
        [
            row(system, f"decode_tokens_per_s@{kind}", "tokens/s", speed)
            for kind, best in (("quoting", 40.0), ("ordinary", 6.0))
            for system, speed in (("drafts", best), ("exact", 6.0), ("one_process", 150.0))
        ],
    ),
    document(
        "memory",
        [
            row(system, f"{metric}{when}_bytes", "bytes", size * 0.9e6, size * 1e6)
            for when in ("_idle", "")
            for metric in ("rss", "pss", "pss_all")
            for system, size in (("swarm", 812.0), ("one_process", 260.0), ("llama_cpp", 190.0))
        ],
    ),
    document("recovery", [row("swarm", "recovered@25", "share", 0, 0, 0)]),
]


def written(tmp_path: Path, *documents: Document) -> Path:
    path = tmp_path / "documents.json"
    path.write_bytes(msgspec.json.encode(documents))
    return path


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG that is whole and not of one colour."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
    assert len(data) > 5_000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def report_on(tmp_path: Path, *documents: Document) -> str:
    return write_report([written(tmp_path, *documents)], tmp_path / "out").read_text(encoding="utf-8")


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_holds_one_document_or_a_list(tmp_path: Path) -> None:
    one = document("startup", [row("swarm", "startup_cold_s", "s", 3.0)])
    alone = tmp_path / "one.json"
    alone.write_bytes(msgspec.json.encode(one))
    assert read_documents(alone) == [one]
    assert read_documents(written(tmp_path, *EVERYTHING)) == EVERYTHING


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "empty list"),
        (b"{}", "required field `format`"),
        (b'{"format": 2}', "`$.format`"),
        (b'[{"format": 1, "scenario": 7}]', "`$[0].scenario`"),
        (b"7", "Expected `object | array`"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(why)) as refused:
        write_report([path], tmp_path / "out")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        write_report([tmp_path / "nothing.json"], tmp_path)
    with pytest.raises(BadInput, match="no files"):
        write_report([], tmp_path)


def test_a_place_that_cannot_be_written_is_a_local_fault(tmp_path: Path, no_matplotlib: None) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(LocalFault, match="--out"):
        report_on(tmp_path, *EVERYTHING)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_says_what_was_measured_where_and_how_far_it_is_from_the_limit(
    tmp_path: Path, no_matplotlib: None
) -> None:
    page = report_on(tmp_path, *EVERYTHING)
    for said in (
        "Made-up CPU, 2 cores, 24.0 GiB",
        "commit abc",
        "by `p2pgrid bench all --quick`",
        "at most 7% of the machine",
        "| swarm | decode_tokens_per_s | tokens/s | 71 | 60 – 73 |  | 3 | 3 |",
        "| swarm | ttft_s | ms | 12.4 | 12.3 – 12.5 |  | 2 | 3 |",
        "| decode_tokens_per_s | swarm / one_process | 0.705 | 0.700 – 0.710 | 2 |",
        "| decode_tokens_per_s | swarm | 270 | tokens/s | 26% | reading weights at 30 GB/s |",
        "| swarm | recovered@25 | % | 0 | 0 – 0 |  | 3 | 3 |",
    ):
        assert said in page
    assert page.count("Made-up CPU") == 1
    assert "Not complete" not in page


def test_what_a_document_says_cannot_break_the_page(tmp_path: Path, no_matplotlib: None) -> None:
    odd = msgspec.structs.replace(HERE, command="p2pgrid `x`\n# y", model="a|b\n\n# c")
    page = report_on(tmp_path, document("../../odd | <b>\n# d", [row("a|b", "m", "u", 1.0)], environment=odd))
    assert "# y" not in page.splitlines()
    assert "# c" not in page.splitlines()
    assert "# d" not in page.splitlines()
    assert "| a\\|b | m | u |" in page
    assert "<b>" not in page
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["documents.json", "out", "report.md"]


def test_an_interrupted_run_is_told_apart(tmp_path: Path, no_matplotlib: None) -> None:
    page = report_on(tmp_path, document("churn", complete=False, notes=("interrupted",)))
    assert "**Not complete**" in page
    assert "No figures." in page
    assert "- interrupted" in page


def test_documents_of_two_machines_are_told_apart(tmp_path: Path, no_matplotlib: None) -> None:
    other = msgspec.structs.replace(HERE, cpu="Another CPU")
    page = report_on(tmp_path, document("decode"), document("decode", environment=other))
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## Machine 1", "## Machine 2", "## decode, machine 1", "## decode, machine 2"]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────


def test_without_matplotlib_there_is_a_page_that_says_how_to_get_pictures(tmp_path: Path, no_matplotlib: None) -> None:
    page = report_on(tmp_path, *EVERYTHING)
    assert "`pip install p2pgrid[bench]`" in page
    assert "![" not in page
    assert not list(tmp_path.rglob("*.png"))


def test_the_page_shows_a_picture_of_every_scenario_that_has_one(tmp_path: Path) -> None:
    page = report_on(tmp_path, *EVERYTHING, EVERYTHING[0])
    shown = re.findall(r"^!\[.*\]\((.*)\)$", page, re.MULTILINE)
    if not plots.available():
        assert shown == []
        return
    assert shown == [f"{name}.png" for name in plots.PICTURES] + ["decode-2.png"]
    for name in shown:
        width, height = png_size(tmp_path / "out" / name)
        assert width == plots.WIDTH_INCHES * plots.DPI
        assert 300 < height < 1400


def test_odd_figures_still_make_a_picture(tmp_path: Path) -> None:
    """One system, one size, no spread, nothing above zero, names that look like formulas, sizes side by side."""
    odd = [
        document("decode", [row(f"${i}_{{x$", "decode_tokens_per_s", "tokens/s", 0.0) for i in range(9)]),
        document("prefill", [row("star", "prefill_tokens_per_s", "tokens/s", 1e12)]),
        document("concurrency", [row("swarm", "aggregate_tokens_per_s@many", "tokens/s", 5.0)]),
        document("hop", [row("swarm", f"hop_s@{size}", "s", 0.0, 1e-3, 2e-3) for size in (65_500, 65_507, 65_536)]),
        document("discovery", [row("swarm", "join_s@10", "s", 0.3)]),
    ]
    page = report_on(tmp_path, *odd)
    drawn = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert drawn == (["decode.png", "discovery.png", "hop.png", "prefill.png"] if plots.available() else [])
    assert page.count("![") == len(drawn)


def test_units_are_those_that_people_read() -> None:
    assert plots.scaled("s", [0.002, 0.5]) == (1e3, "ms")
    assert plots.scaled("s", [2.0]) == (1.0, "s")
    assert plots.scaled("share", [0.0]) == (100.0, "%")
    assert plots.scaled("bytes", [5 * 2.0**20]) == (2.0**-20, "MiB")
    assert plots.scaled("tokens/s", [0.001]) == (1.0, "tokens/s")
    assert plots.scaled("s", []) == (1.0, "s")
    assert [plots.number(value) for value in (0.0, 1.0, 71.234, 12345.6, 3e12)] == [
        "0",
        "1",
        "71.23",
        "12,346",
        "3e+12",
    ]
