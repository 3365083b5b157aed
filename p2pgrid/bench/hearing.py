"""One answer that may break off: what its client had of it, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from p2pgrid.core.generation import Generation
from p2pgrid.core.text import TextStream
from p2pgrid.errors import NoRoute, PeerError
from p2pgrid.node.answer import generate
from p2pgrid.node.client import ModelDescription, open_session
from p2pgrid.node.peer import Peer
from p2pgrid.services.pipeline import Terms
from p2pgrid.wire.messages import Hop


@dataclass
class Heard:
    """An answer as far as it came. Times in seconds of the run loop's clock."""

    asked_s: float
    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    route: tuple[Hop, ...] = ()
    error: PeerError | NoRoute | None = None
    """Why it broke off."""
    ended_s: float = 0.0
    """When its client had the last token, or the error."""
    replayed: int = 0
    """Positions that some stage had to compute again."""


def equal_share(tokens: Sequence[int], undisturbed: Sequence[int]) -> float:
    """The share of `tokens` before the first one that differs from the undisturbed answer; 1 when there are none."""
    for i, token in enumerate(tokens):
        if i >= len(undisturbed) or token != undisturbed[i]:
            return i / len(tokens)
    return 1.0


async def hear(
    peer: Peer,
    model: ModelDescription,
    prompt: Sequence[int],
    max_tokens: int,
    on_token: Callable[[Heard], None] = lambda heard: None,
) -> Heard:
    """Ask for exactly `max_tokens`, greedily; `on_token` is called after each. What goes wrong is in the answer."""
    heard = Heard(trio.current_time())

    def count(token: int) -> bytes:  # the one place where a loop over an answer tells of every token at once
        heard.token_ids.append(token)
        heard.times_s.append(trio.current_time())
        on_token(heard)
        return b""

    generation = Generation(
        prompt,
        max_tokens=max_tokens,
        stop_tokens=(),
        context_max=len(prompt) + max_tokens,
        chunk=peer.settings.prefill_chunk,
        run_ahead=True,
    )
    try:
        terms = Terms(positions=len(prompt) + max_tokens)
        async with open_session(peer, model.id, model.manifest.layers, terms) as session:
            heard.route = session.route
            answer = await generate(session, generation, text=TextStream(()), bytes_of=count, show=lambda piece: None)
            heard.replayed = sum(recovery.replayed for recovery in answer.recoveries)
    except (PeerError, NoRoute) as error:
        heard.error = error
    heard.ended_s = trio.current_time()
    return heard
