"""The live view of a real swarm, in a terminal."""

import signal

import pytest

from tests.e2e.processes import RunningSwarm, run
from tests.e2e.terminals import terminal
from tests.real_model import NAME

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(240)]

SCREEN, NO_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
"""The terminal's other screen, which leaves what was there before as it was."""


def test_every_node_is_shown_and_ctrl_c_leaves_the_terminal_as_it_was(swarm: RunningSwarm) -> None:
    with terminal("top", "--every", "0.2", "--bootstrap", swarm.bootstrap[0]) as top:
        top.wait_for(SCREEN)
        for node in swarm.state["nodes"]:
            top.wait_for(f"…{node['peer_id'][-6:]}")
        top.process.send_signal(signal.SIGINT)
        top.wait_for(NO_SCREEN, 5)
        assert top.process.wait(5) == 0
    once = run("top", "--once", "--bootstrap", swarm.bootstrap[0])
    assert once.returncode == 0, once.stderr
    assert f"{NAME} is degraded" in once.stdout
    assert "\x1b" not in once.stdout
