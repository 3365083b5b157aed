"""p2pgrid: idle machines as one peer-to-peer inference network.

From Python: `connect` on trio, `connect_blocking` for everybody else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pgrid.api.blocking import BlockingGrid, BlockingStream, connect_blocking
    from p2pgrid.api.grid import Grid, Options, connect
    from p2pgrid.api.stream import AnswerStream
    from p2pgrid.errors import (
        BadInput,
        LocalFault,
        NoRoute,
        Overloaded,
        P2pgridError,
        PeerError,
        PeerMisbehaved,
        PeerUnavailable,
    )
    from p2pgrid.node.answer import Answer, ScoredText, TokenInfo
    from p2pgrid.node.survey import ModelSurvey

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "BadInput",
    "BlockingGrid",
    "BlockingStream",
    "Grid",
    "LocalFault",
    "ModelSurvey",
    "NoRoute",
    "Options",
    "Overloaded",
    "P2pgridError",
    "PeerError",
    "PeerMisbehaved",
    "PeerUnavailable",
    "ScoredText",
    "TokenInfo",
    "connect",
    "connect_blocking",
]

_HOMES = {
    "p2pgrid.api.blocking": ("BlockingGrid", "BlockingStream", "connect_blocking"),
    "p2pgrid.api.grid": ("Grid", "Options", "connect"),
    "p2pgrid.api.stream": ("AnswerStream",),
    "p2pgrid.node.answer": ("Answer", "ScoredText", "TokenInfo"),
    "p2pgrid.node.survey": ("ModelSurvey",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """What is exported is imported when it is first used: the network library alone takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF.get(name, "p2pgrid.errors")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
