"""Errors, named by what the caller does next.

Foreign errors (libp2p, sockets, onnxruntime, the file system) become one of these in the module that wraps
the library, and travel no further. Every message says what happened, where, and what to do about it, in
one line that can be shown to a user as it stands.
"""

from p2pgrid.ids import PeerId


class P2pgridError(Exception):
    """Base of all errors that p2pgrid raises on purpose."""


class BadInput(P2pgridError):
    """The request itself is wrong: change it and ask again. The command line exits with 2."""


class BadSchema(BadInput):
    """No answer can be held to the request's JSON schema."""


class PeerError(P2pgridError):
    """Something is wrong with a peer; `peer` says which one, where that is known."""

    def __init__(self, message: str, peer: PeerId | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class PeerUnavailable(PeerError):
    """A peer is gone, unreachable or silent: take another one."""


class PeerMisbehaved(PeerError):
    """A peer sent something that no correct peer sends: cut it off and take another one."""


class Overloaded(PeerError):
    """No room just now: try again after `retry_after_s` seconds, or elsewhere."""

    def __init__(self, message: str, retry_after_s: float, peer: PeerId | None = None) -> None:
        super().__init__(message, peer)
        self.retry_after_s = retry_after_s


class NoRoute(P2pgridError):
    """No chain of stages covers the model: tell the user which layers are missing."""


class LocalFault(P2pgridError):
    """Something is wrong on this machine (disk, memory, a damaged file): stop and say so."""
