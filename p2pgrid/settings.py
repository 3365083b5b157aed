"""Limits and times that a node lives by. Units are last in each name."""

import msgspec


class LinkSettings(msgspec.Struct, frozen=True):
    """Of one persistent link between two peers."""

    heartbeat_s: float = 0.5
    """A ping goes out when nothing else did for this long."""
    silence_s_max: float = 1.8
    """A link on which nothing came for this long is lost."""
    window_bytes: int = 16 * 1024 * 1024
    """What a peer may have sent us that we have not yet consumed."""
    dial_s_max: float = 4.0
    close_s_max: float = 0.5


class DiscoverySettings(msgspec.Struct, frozen=True):
    """Of finding peers and being found."""

    advert_ttl_s: float = 60.0
    advert_renew_s: float = 15.0
    announce_every_s: float = 180.0
    """How often the DHT provider record is written anew."""
    refresh_s: float = 5.0
    """How often the view is compared with other peers when nothing is awaited."""
    refresh_eager_s: float = 0.5
    """The same while somebody waits for the view to change."""
    exchange_s_max: float = 3.0
    """How long one peer may take to answer an exchange of adverts."""
    peers_per_round: int = 8


class StageSettings(msgspec.Struct, frozen=True):
    """Of one stage."""

    context_max: int = 8192
    """Token positions a session may have, at most; the model's own limit holds too."""
    sessions_max: int = 64
    """KV rows; one more session is told `Busy`."""
    kv_positions: int = 64 * 1024
    """KV budget: positions that all sessions and kept prefixes together may hold, as far as memory allows."""
    threads: int = 0
    """Threads of the runtime for one step; 0 = one a core that this process may use, 8 at most."""


class PipelineSettings(msgspec.Struct, frozen=True):
    """Of the client's side."""

    prefill_chunk: int = 128
    """Token positions in one prefill step; see `core.generation.chunks` for the rule about the last one."""
    open_s_max: float = 5.0
    open_patience_s: float = 20.0
    """How long other routes, and busy stages again, are tried before a request fails."""
    token_s_max: float = 60.0
    """Longest wait for one token while every link of the route is alive."""
    find_route_s_max: float = 6.0
    recover_s_max: float = 20.0
    """How long another route is looked for when one was lost in mid-answer: a node may be about to take its layers."""
