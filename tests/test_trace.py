"""What is written down of steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid import trace
from p2pgrid.errors import LocalFault
from p2pgrid.trace import NO_TRACE, open_trace


def test_events_are_lines_of_json_in_the_order_in_which_they_were_noted(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with open_trace(path) as tracer:
        tracer.note("read", "5e", 7, 12.25)
        tracer.note("computed", "5e", 7)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"event": "read", "session": "5e", "position": 7, "at_s": 12.25}
    assert second["event"] == "computed"
    assert second["at_s"] == pytest.approx(trace.now(), abs=60)


def test_all_is_written_even_when_the_work_ends_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_trace(tmp_path / "t") as tracer:
        tracer.note("read", "5e", 0)
        raise RuntimeError
    assert (tmp_path / "t").read_text().count("\n") == 1


def test_processes_of_one_machine_share_the_clock() -> None:
    before = trace.now()
    code = "from p2pgrid import trace; print(trace.now())"
    within = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert before <= within <= trace.now()


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    with open_trace(None) as tracer:
        assert tracer is NO_TRACE
        tracer.note("read", "5e", 0)


def test_a_trace_that_cannot_be_written_is_a_local_fault(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot write the trace"), open_trace(tmp_path / "missing" / "t"):
        pass
