"""Where p2pgrid keeps its things on this machine."""

import os
from pathlib import Path

import platformdirs

HOME_VARIABLE = "P2PGRID_HOME"


def data_dir() -> Path:
    """The directory of everything: `P2PGRID_HOME` where that is set, else the user's data directory.

    It need not exist yet. In it lie `identity`, `models/` (names), `blobs/` (contents) and `scratch/`.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_data_path("p2pgrid", appauthor=False)


def control_dir() -> Path:
    """Where the nodes of this machine can be told what to do."""
    return data_dir() / "run"
