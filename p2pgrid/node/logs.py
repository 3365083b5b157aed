"""Where logs go: to standard error, a line each, and only what the user wants to hear."""

import logging
import os
import sys

import structlog

from p2pgrid.errors import BadInput

LEVEL_VARIABLE = "P2PGRID_LOG"


def log_to_stderr() -> None:
    """At the level that `P2PGRID_LOG` says, else warnings and worse. Raises BadInput when there is no such level."""
    level = os.environ.get(LEVEL_VARIABLE, "warning")
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        raise BadInput(f"{LEVEL_VARIABLE}={level}: give one of debug, info, warning, error")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(names[level.upper()]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever stderr is by then
    )


def log_unless_configured() -> None:
    """The same, unless the program that uses us has decided where its logs go."""
    if not structlog.is_configured():
        log_to_stderr()
