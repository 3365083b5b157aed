"""What a gateway takes before it says no. Units are last in each name."""

import msgspec


class GatewayLimits(msgspec.Struct, frozen=True):
    """Limits on what strangers may ask for."""

    body_bytes_max: int = 1024 * 1024
    body_s_max: float = 30.0
    """A request's body must be there this long after its header."""
    header_bytes_max: int = 16 * 1024
    idle_s_max: float = 15.0
    """A connection on which no request is complete for so long is closed."""
    connections_max: int = 1024
    answers_max: int = 256
    """Answers that may run at the same time; each of `n` choices is one."""
    choices_max: int = 64
    """Answers that one request may ask for: prompts times `n`."""
    choices_at_once: int = 8
    """Of those, how many run at the same time."""
    answer_tokens_default: int = 1024
    """Of a chat that does not say how long its answer may be."""
    request_s_max: float = 600.0
    """From the first byte asked to the last byte answered."""
    stall_s_max: float = 30.0
    """A reader that takes nothing for so long is cut off."""
    stop_s_max: float = 0.5
    """What running answers get to say that the gateway stops."""
