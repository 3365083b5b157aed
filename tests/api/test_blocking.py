"""The same without trio: real threads, a swarm in memory."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from p2pgrid.api.blocking import connect_blocking
from p2pgrid.errors import BadInput, NoRoute
from tests.api.toy_grid import blocking_on_toys


@pytest.fixture
def swarm_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    blocking_on_toys(monkeypatch)


def test_answers_and_scores_come_without_an_event_loop(swarm_in_memory: None) -> None:
    with connect_blocking() as grid:
        stream = grid.generate("hello", max_tokens=6)
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text
        assert len(stream.answer.token_ids) == 6
        said = grid.chat([{"role": "user", "content": "hello"}], max_tokens=6).read()
        assert said.token_ids == stream.answer.token_ids
        assert len(grid.score("hello").next_logprobs) == 4
        with pytest.raises(BadInput, match="temperature=-1"):
            grid.generate("hello", temperature=-1)
        with grid.generate("hello", max_tokens=200) as left:
            next(left)
        assert list(left) == []
    with pytest.raises(BadInput, match="connection is closed"):
        grid.score("hello")


def test_ctrl_c_ends_what_is_waited_for_and_nothing_else(swarm_in_memory: None) -> None:
    with connect_blocking() as grid:
        stream = grid.generate("hello", max_tokens=200)
        next(stream)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), stream:
            for _ in stream:
                pass
        assert grid.generate("hello", max_tokens=2).read().finish_reason == "length"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("p2pgrid")]


def test_why_there_is_no_connection_is_raised(swarm_in_memory: None) -> None:
    with pytest.raises(NoRoute, match="nobody is there"), connect_blocking("nowhere"):
        pass


def test_an_error_of_the_caller_comes_out_as_it_is(swarm_in_memory: None) -> None:
    with pytest.raises(ZeroDivisionError), connect_blocking() as grid:
        next(grid.generate("hello", max_tokens=200))
        1 / 0  # noqa: B018


def test_importing_p2pgrid_loads_nothing_until_it_is_used() -> None:
    code = "import sys, p2pgrid; print(sorted({'trio', 'libp2p', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
