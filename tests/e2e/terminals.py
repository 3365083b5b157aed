"""A terminal of its own for a command, for what only happens there."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.processes import PYTHON

CTRL_C = "\x03"


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
