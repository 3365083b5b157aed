"""The stage's side of one session, as a machine: which steps to run, and where their results go."""

from collections.abc import Sequence
from dataclasses import dataclass

from p2pgrid.core.speculation import Drafter
from p2pgrid.errors import PeerMisbehaved
from p2pgrid.ids import PeerId, SessionId, Span
from p2pgrid.wire.messages import Hop, Open, Step


@dataclass(frozen=True)
class Run:
    """Set the row's length to `position` and compute."""

    position: int


@dataclass(frozen=True)
class Refuse:
    """Tell the client that the step lacks what comes before it."""

    length: int


@dataclass(frozen=True)
class Ignore:
    """A step of an earlier epoch, whose route is gone, or a draft that was guessed wrong."""


Decision = Run | Refuse | Ignore


class StageSession:
    """A session as one stage of its route sees it. Does no I/O and touches no tensor.

    Steps are addressed by position: a step at or below the present length overwrites what is there, so a step
    that is run twice does no harm; a step beyond it is refused, never guessed at.
    """

    def __init__(self, client: PeerId, opening: Open, context_max: int) -> None:
        self.client = client
        self.opening = opening
        self.context_max = min(context_max, opening.positions or context_max)
        self.tokens: list[int] = []
        """What the row holds, position by position."""
        self.changed_from = 0
        """Positions from here on were written since this was set; whoever copies the row meanwhile sets it."""
        self._prefilled = 0
        drafts = self.hop == 0 and len(opening.route) > 1 and not (opening.relayed or opening.exact)
        self.drafter = Drafter(len(opening.route)) if drafts else None
        self._drawn: tuple[int, int] | None = None
        self._taken: tuple[object, ...] = ()

    @property
    def id(self) -> SessionId:
        return self.opening.session

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def prefilled(self) -> list[int]:
        """The tokens of the row's beginning that was computed in steps of several positions. Such rows hold the same
        bits however the steps were cut, so other sessions may go on from them; those of one-position steps do not.
        """
        return self.tokens[: self._prefilled]

    @property
    def epoch(self) -> int:
        return self.opening.epoch

    @property
    def hop(self) -> int:
        return self.opening.hop

    @property
    def is_last(self) -> bool:
        return self.hop == len(self.opening.route) - 1

    @property
    def next_hop(self) -> Hop:
        """Where results go: the next stage, and from the last one back to the first."""
        return self.opening.route[(self.hop + 1) % len(self.opening.route)]

    @property
    def downstream(self) -> PeerId:
        """Who gets the results: the next stage, or the client when it relays."""
        return self.client if self.opening.relayed else self.next_hop.peer

    def may_send(self, peer: PeerId) -> bool:
        """Whether steps of this session may come from `peer`: the stage before, and for stage 0 the client."""
        if self.opening.relayed:
            return peer == self.client
        return peer == self.opening.route[self.hop - 1].peer or (self.hop == 0 and peer == self.client)

    def reopen(self, opening: Open) -> None:
        """A new epoch along another route: the row stays, what was under way is void."""
        self.opening = opening
        self._drawn = None
        self._taken = ()
        if self.drafter is not None:
            self.drafter.recall()

    def hold(self, tokens: Sequence[int]) -> None:
        """The row begins with these positions already, as steps of several positions compute them."""
        self.tokens = list(tokens)
        self._prefilled = len(self.tokens)
        if self.drafter is not None:
            self.drafter.saw(0, self.tokens)

    def take_over(self, position: int, tokens: Sequence[int]) -> None:
        """The row now holds these positions too, and nothing behind them, as another stage computed them."""
        self.tokens[position:] = tokens
        if self.drafter is not None:
            self.drafter.saw(position, tokens)

    def takes(self, step: Step) -> bool:
        """Whether to take a step of this epoch that came: not if it is the one that came last, said again. To run it
        twice would do the row no harm, but each of the two would go on round the route.
        """
        last, self._taken = self._taken, (step.position, step.tokens, step.want, step.until, step.draft, step.through)
        return self._taken != last

    def on_step(self, epoch: int, position: int, tokens: Sequence[int], *, draft: bool = False) -> Decision:
        """What to do with a step of `tokens`. Raises PeerMisbehaved past the end of what the session may hold."""
        if epoch != self.epoch:
            return Ignore()
        if draft and (position > self.length or (self.is_last and self._drawn != (position, *tokens))):
            return Ignore()
        if position + len(tokens) > self.context_max:
            raise PeerMisbehaved(
                f"a step up to position {position + len(tokens)}, and this session has room for {self.context_max}"
            )
        return Run(position) if position <= self.length else Refuse(self.length)

    def computed(self, position: int, tokens: Sequence[int]) -> None:
        """The row now ends behind this step."""
        self.tokens[position:] = tokens
        self.changed_from = min(self.changed_from, position)
        self._drawn = None
        if position <= self._prefilled:
            self._prefilled = self.length if len(tokens) > 1 else position

    def feeds_on(self, position: int, token: int, until: int) -> bool:
        """Whether the last stage feeds the token drawn for `position` to stage 0 without asking the client."""
        feeds = position < until and token not in self.opening.stop_tokens and not self.opening.relayed
        self._drawn = (position, token) if feeds else None
        return feeds


def check_route(opening: Open, own_peer: PeerId, own_span: Span, layers: int) -> None:
    """Raises PeerMisbehaved unless the route covers `layers` and its hop names this peer and span."""
    route: Sequence[Hop] = opening.route
    if opening.hop >= len(route):
        raise PeerMisbehaved(f"hop {opening.hop} of a route of {len(route)}")
    here = route[opening.hop]
    if here.peer != own_peer or here.span != own_span:
        raise PeerMisbehaved(f"the route expects layers {here.span} on {here.peer}; here are layers {own_span}")
    ends = [0, *(hop.span.stop for hop in route)]
    if [hop.span.start for hop in route] != ends[:-1] or ends[-1] != layers:
        raise PeerMisbehaved(f"a route that does not cover layers 0:{layers} one after another")
