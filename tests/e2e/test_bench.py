"""The benchmark on real processes: its document, and what an interrupt leaves."""

import json
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from p2pgrid.bench.document import Document
from tests.e2e.processes import PYTHON, alive, run, wait_for
from tests.real_model import real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(360)]


@pytest.mark.slow
def test_the_document_of_a_benchmark_is_of_the_published_form() -> None:
    real_store()
    done = run("bench", "decode", "--quick", "--nodes", "2", "--json", "-", timeout_s=300)
    assert done.returncode == 0, done.stderr
    document = msgspec.json.decode(done.stdout, type=Document)
    assert set(json.loads(done.stdout)) == set(Document.__struct_fields__)
    assert (document.scenario, document.nodes, document.quick, document.complete) == ("decode", 2, True, True)
    rows = {(row.system, row.metric): row for row in document.rows}
    for system in ("swarm", "one_process", "star"):
        assert len(rows[system, "decode_tokens_per_s"].samples) == 3
        assert rows[system, "decode_tokens_per_s"].min > 0
        assert rows[system, "inter_token_latency_s"].p99 is not None
    assert ("decode_tokens_per_s", "one_process") in {(ratio.metric, ratio.baseline) for ratio in document.ratios}
    assert {limit.system for limit in document.limits} >= {"swarm", "one_process"}
    assert not [note for note in document.notes if "DIFFERENT" in note]


def test_an_interrupted_benchmark_leaves_its_document_and_no_process(tmp_path: Path) -> None:
    real_store()
    file = tmp_path / "decode.json"
    command = [*PYTHON, "bench", "decode", "--nodes", "2", "--repeat", "1000", "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        # A bootstrap peer, two nodes and the single process, and then some time for samples.
        wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 4, 90, process)
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert said.splitlines()[-1] == "p2pgrid: decode: interrupted"
    assert alive(children) == []
    document = msgspec.json.decode(file.read_bytes(), type=Document)
    assert not document.complete
    assert document.notes[-1] == "interrupted"
