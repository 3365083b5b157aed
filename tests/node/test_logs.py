"""Logs of a program that uses p2pgrid: silent in good times, never on standard output."""

import subprocess
import sys

import pytest

from p2pgrid.errors import BadInput
from p2pgrid.node.logs import log_to_stderr

PROGRAM = """
import structlog
from p2pgrid.node.logs import log_unless_configured
{configured}
log_unless_configured()
log = structlog.get_logger()
log.debug("quiet")
log.warning("loud")
"""


@pytest.mark.parametrize(
    ("configured", "out", "err"),
    [("", [], ["loud"]), ("structlog.configure()", ["quiet", "loud"], [])],
)
def test_a_program_hears_of_warnings_on_stderr_unless_it_decides_otherwise(
    configured: str, out: list[str], err: list[str]
) -> None:
    code = PROGRAM.format(configured=configured)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for said, expected in ((ran.stdout, out), (ran.stderr, err)):
        assert [word for word in ("quiet", "loud") if word in said] == expected


def test_a_level_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_LOG", "shout")
    with pytest.raises(BadInput, match="P2PGRID_LOG=shout"):
        log_to_stderr()
