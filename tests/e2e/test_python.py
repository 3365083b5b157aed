"""The README's examples, run as they stand against a real swarm."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import RunningSwarm
from tests.real_model import NAME

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(240)]

README = Path(__file__).resolve().parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shown_by(example: str, swarm: RunningSwarm) -> list[str]:
    code = example.replace("ADDRESS", swarm.bootstrap[0])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_example_on_trio_does_what_it_says(swarm: RunningSwarm) -> None:
    on_trio, _ = EXAMPLES
    shown = shown_by(on_trio, swarm)
    assert shown[0].startswith(f"{NAME} is ")
    assert shown[0].endswith("served by 3 nodes")
    assert shown[-2].endswith("tokens through 3 stages")
    assert 0 < float(shown[-1]) < 10


def test_the_example_without_trio_gives_the_same_answer(swarm: RunningSwarm) -> None:
    on_trio, blocking = EXAMPLES
    assert shown_by(blocking, swarm) == shown_by(on_trio, swarm)[1:-2]
