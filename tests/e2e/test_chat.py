"""A chat as its user has it: in a terminal of its own, with the real model in its process."""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.processes import PYTHON
from tests.real_model import real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(120)]

CTRL_C = "\x03"
PROMPT, READ = "\x1b[?2004h", "\x1b[?2004l"
"""What a terminal is told when a line begins to be edited, and when it was read: to bracket what is pasted."""


class Terminal:
    """What a command says in a terminal, and what is typed there."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.said = ""
        self._descriptor = descriptor

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str, deadline_s: float = 60.0) -> None:
        """Until `text` was said since the last call."""
        give_up_at = time.monotonic() + deadline_s
        while text not in self.said:
            assert time.monotonic() < give_up_at, f"{text!r} was not said; {self.said[-500:]!r}"
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self.said += os.read(self._descriptor, 65536).decode(errors="replace")
        self.said = self.said.partition(text)[2]


@contextmanager
def terminal(*command: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    process = subprocess.Popen(
        [*PYTHON, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_ctrl_c_stops_the_answer_and_then_leaves() -> None:
    real_store()
    with terminal("chat", "--local", "--no-history") as chat:
        chat.wait_for(PROMPT)
        chat.type("Tell me a very long story.\r")
        chat.wait_for(READ)
        chat.wait_for(" the ")
        chat.process.send_signal(signal.SIGINT)
        chat.wait_for("[stopped; Ctrl-C again leaves]")
        chat.wait_for(PROMPT)
        chat.type("/stats\r")
        chat.wait_for("no answer yet")
        chat.wait_for(PROMPT)
        chat.type("/he\t")
        chat.wait_for("lp")
        chat.type(CTRL_C)  # drops what was typed
        chat.type(CTRL_C)
        assert chat.process.wait(5) == 0
