"""From requests to answers: all choices of one at the same time, for as long as its client is there."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio
from starlette.types import Receive

from p2pgrid.errors import P2pgridError
from p2pgrid.gateway.access import Caller
from p2pgrid.gateway.documents import HowItCame, Recovered, RouteHop
from p2pgrid.gateway.faults import ApiError, as_api_error, too_busy
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.ids import ModelId
from p2pgrid.node.answer import Answer, Piece, ScoredText, Session, TokenInfo
from p2pgrid.node.request import Asker, Request, TokenIds

Tell = Callable[["Event"], None]


@dataclass(frozen=True)
class Done:
    """A complete answer, its tokens, and what its prompt scored if that was asked for."""

    answer: Answer
    tokens: Sequence[TokenInfo]
    scored: ScoredText | None = None


@dataclass(frozen=True)
class Opened:
    """Every stage has taken the session of choice `index`; its prompt was scored, if that was asked for."""

    index: int
    scored: ScoredText | None


@dataclass(frozen=True)
class Said:
    """More of choice `index`."""

    index: int
    piece: Piece


@dataclass(frozen=True)
class Ended:
    """Choice `index` is complete."""

    index: int
    done: Done


Event = Opened | Said | Ended


@dataclass(frozen=True)
class Asked:
    """What a client wants answered: `requests` are its choices, in order."""

    id: str
    """Told to the client."""
    model: ModelId
    name: str
    asker: Asker
    requests: Sequence[Request]
    prompt_tokens: Sequence[int]
    """How long the prompt of each of them is."""
    caller: Caller
    created: int
    """Unix seconds."""
    per_prompt: int = 1
    """So many requests, one after another, have a prompt in common."""
    score_top: int | None = None
    """Score the prompts too, with so many of the likeliest tokens at each place."""
    answers: bool = True
    """Without it the prompts alone are wanted, scored or only given back."""

    @property
    def fingerprint(self) -> str:
        """Answers with the same one and the same seed are the same."""
        return f"fp_{self.model[:12]}"


async def answer_all(gateway: Gateway, asked: Asked, tell: Tell) -> None:
    """Tell of every choice as it comes about. Raises ApiError."""
    limits, metrics = gateway.limits, gateway.metrics
    at_once = min(len(asked.requests), limits.choices_at_once)
    if gateway.activity.running + at_once > limits.answers_max:
        raise too_busy(f"{gateway.activity.running} answers run here already: ask again in a moment", 1.0)
    failed: list[P2pgridError] = []
    room = trio.CapacityLimiter(at_once)

    async def answer(index: int, request: Request) -> None:
        def opened(session: Session) -> None:
            running.opened(session)
            asked.caller.use_tokens(asked.prompt_tokens[index])
            metrics.prompt_taken(asked.prompt_tokens[index])
            tell(Opened(index, scored))

        def show(piece: Piece) -> None:
            if piece.token is not None:
                tokens.append(piece.token)
                before_s = running.last_token_s
                running.token()
                asked.caller.use_tokens(1)
                metrics.token_came(before_s, running)
            tell(Said(index, piece))

        tokens: list[TokenInfo] = []
        async with room:
            scored = await _score(gateway, asked, index)
            if asked.answers:
                with gateway.activity.begin(asked.id, asked.model) as running:
                    try:
                        found = await asked.asker.over_swarm(gateway.peer, request, show, opened)
                    finally:
                        metrics.recovered(len(running.recoveries))
            else:
                asked.caller.use_tokens(asked.prompt_tokens[index])
                found = Answer(asked.prompt_tokens[index], finish_reason="length")
                tell(Opened(index, scored))
        tell(Ended(index, Done(found, tokens, scored)))

    async def try_to_answer(index: int, request: Request) -> None:
        try:
            await answer(index, request)
        except P2pgridError as error:
            failed.append(error)
            tasks.cancel_scope.cancel()

    async with trio.open_nursery() as tasks:
        for index, request in enumerate(asked.requests):
            tasks.start_soon(try_to_answer, index, request)
    if failed:
        raise as_api_error(failed[0])


async def _score(gateway: Gateway, asked: Asked, index: int) -> ScoredText | None:
    """Of the prompt of choice `index`, if that is wanted; there is nothing to score in one of a single token."""
    if asked.score_top is None:
        return None
    ids = tuple(asked.asker.prompt_ids(asked.requests[index]))
    if len(ids) == 1:
        return ScoredText([*ids], [], [], [()])
    return await asked.asker.score_over_swarm(gateway.peer, TokenIds(ids), asked.score_top)


async def while_client_is_there(gateway: Gateway, receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`; cut it short when the client goes away, and with an ApiError when time is up or the gateway stops."""
    failed: list[ApiError] = []

    async def watch_client() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        tasks.cancel_scope.cancel()

    async def watch_gateway() -> None:
        await gateway.stopping.wait()
        failed.append(ApiError(503, "this gateway is about to stop: ask again", type="server_error", code="stopping"))
        tasks.cancel_scope.cancel()

    async with trio.open_nursery() as tasks:
        tasks.start_soon(watch_client)
        tasks.start_soon(watch_gateway)
        with trio.move_on_after(gateway.limits.request_s_max) as limit:
            try:
                await work()
            except ApiError as error:
                failed.append(error)
        if limit.cancelled_caught:
            message = f"the answer took longer than {gateway.limits.request_s_max:g} s"
            failed.append(ApiError(504, message, type="server_error", code="timeout"))
        tasks.cancel_scope.cancel()
    if failed:
        raise failed[0]


def how_it_came(answer: Answer) -> HowItCame:
    return HowItCame(
        [RouteHop(hop.peer, (hop.span.start, hop.span.stop)) for hop in answer.route],
        [Recovered(one.answers, list(one.lost), round(one.took_s, 6)) for one in answer.recoveries],
        ttft_s=round(answer.ttft_s, 6),
        tokens_per_s=round(answer.decode_tokens_per_s, 3),
        cached_tokens=answer.cached_tokens,
    )
