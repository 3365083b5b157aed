"""A chat as its user has it: in a terminal of its own, with the real model in its process."""

import signal

import pytest

from tests.e2e.terminals import CTRL_C, terminal
from tests.real_model import real_store

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(120)]

PROMPT, READ = "\x1b[?2004h", "\x1b[?2004l"
"""What a terminal is told when a line begins to be edited, and when it was read: to bracket what is pasted."""


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
