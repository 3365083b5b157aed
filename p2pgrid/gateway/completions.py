"""`POST /v1/completions`: prompts that go to the model as they stand."""

from collections.abc import Iterable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.routing import Route

from p2pgrid.gateway.access import Caller
from p2pgrid.gateway.answering import Asked, Done, Ended, Event, Opened, Said, how_it_came
from p2pgrid.gateway.bodies import read_json
from p2pgrid.gateway.documents import Completion, TextChoice, TextLogprobs, Usage
from p2pgrid.gateway.faults import ApiError
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.logprobs import joined, prompt_logprobs, text_logprobs
from p2pgrid.gateway.replies import StreamedReply, WholeReply
from p2pgrid.gateway.sampling import check_stream_options, choices_of, sampling_of, stops_of
from p2pgrid.gateway.schema import CompletionRequest
from p2pgrid.gateway.usage import StreamedUsage, usage_of
from p2pgrid.node.answer import ScoredText, TokenInfo
from p2pgrid.node.request import Asker, Request, TokenIds

TOKENS_DEFAULT = 16
"""What OpenAI's protocol says of a request that names no `max_tokens`."""


def routes(gateway: Gateway) -> list[Route]:
    async def complete(request: HttpRequest) -> WholeReply | StreamedReply:
        caller = gateway.access.admit(request, "completions")
        body = await read_json(request, CompletionRequest, gateway.limits)
        asked, prompts = await _asked(gateway, body, caller)
        echoed = [asked.asker.tokenizer.decode(ids) for ids in prompts] if body.echo else [""] * len(prompts)
        reply = StreamedReply if body.stream else WholeReply
        usage = StreamedUsage(body.stream_options)
        return reply(gateway, asked, CompletionShape(echoed, usage, body.logprobs is not None))

    return [Route("/v1/completions", complete, methods=["POST"])]


async def _asked(gateway: Gateway, body: CompletionRequest, caller: Caller) -> tuple[Asked, list[tuple[int, ...]]]:
    """And the token ids of the prompts. Raises ApiError or BadInput for all that is known without asking anybody."""
    check_stream_options(body)
    max_tokens = TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        message = "max_tokens is 0: ask for at least 1, or have the prompt given back with echo"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    model, name = gateway.models.find(body.model)
    asker = await gateway.models.asker(model)
    prompts = prompts_of(body.prompt, asker)
    choices = choices_of(body, len(prompts), gateway.limits)
    requests = [
        Request(
            TokenIds(prompt),
            max_tokens=max(max_tokens, 1),
            sampling=sampling_of(body, choice, asker.tokenizer.stops),
            stop=stops_of(body),
            cache_scope=caller.id,
            logprobs=body.logprobs,
        )
        for prompt in prompts
        for choice in range(choices)
    ]
    for request in requests[::choices]:
        asker.check(request)
    asked = Asked(
        id=f"cmpl-{gateway.new_id()}",
        model=model,
        name=name,
        asker=asker,
        requests=requests,
        prompt_tokens=[len(prompt) for prompt in prompts for _ in range(choices)],
        caller=caller,
        created=int(gateway.now_s()),
        per_prompt=choices,
        score_top=body.logprobs if body.echo else None,
        answers=max_tokens > 0,
    )
    return asked, prompts


def prompts_of(given: str | list[str | int | list[int]], asker: Asker) -> list[tuple[int, ...]]:
    """The token ids of each prompt. Raises ApiError for a mixture, BadInput for what cannot be made tokens of."""
    if isinstance(given, str):
        return [_tokens(asker, given)]
    texts = [item for item in given if isinstance(item, str)]
    ids = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    match len(given):
        case n if n == len(texts):
            return [_tokens(asker, text) for text in texts]
        case n if n == len(ids):
            return [tuple(ids)]
        case n if n == len(lists):
            return [tuple(one) for one in lists]
        case _:
            message = "prompt mixes texts and tokens: give a text, a list of texts, token ids, or lists of token ids"
            raise ApiError(400, message, param="prompt", code="invalid_value")


def _tokens(asker: Asker, text: str) -> tuple[int, ...]:
    return tuple(asker.prompt_ids(Request(text, raw=True)))


class CompletionShape:
    """See `replies.Shape`. `echoed` are the texts of the prompts that answers begin with, maybe empty."""

    def __init__(self, echoed: Sequence[str], usage: StreamedUsage, logprobs: bool) -> None:
        self._echoed = echoed
        self._usage = usage
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}
        """How long what was streamed of each choice is."""

    def whole(self, asked: Asked, done: Sequence[Done]) -> msgspec.Struct:
        choices = []
        for index, each in enumerate(done):
            answer, echo = each.answer, self._echo(asked, index)
            logprobs = self._logprobs_of(asked, each.tokens, len(echo), each.scored)
            text = echo + answer.text
            choices.append(TextChoice(index, text, answer.finish_reason, logprobs, how_it_came(answer)))
        return self._document(asked, choices, usage_of(asked, done))

    def chunks(self, asked: Asked, events: Sequence[Event]) -> Iterable[msgspec.Struct]:
        for index in sorted({event.index for event in events}):
            own = [event for event in events if event.index == index]
            usage = self._usage.after(asked, index, own)
            choice = self._more(asked, index, own)
            if choice.text or choice.logprobs is not None:
                yield self._document(asked, [choice], usage)
            if isinstance(own[-1], Ended):
                answer = own[-1].done.answer
                choice = TextChoice(index, "", answer.finish_reason, p2pgrid=how_it_came(answer))
                yield self._document(asked, [choice], usage)

    def last_chunks(self, asked: Asked, done: Sequence[Done]) -> Iterable[msgspec.Struct]:
        if (usage := self._usage.last(asked, done)) is not None:
            yield self._document(asked, [], usage)

    def _more(self, asked: Asked, index: int, events: Sequence[Event]) -> TextChoice:
        """What came of a choice, with the prompt before it where that is due."""
        said = [event.piece for event in events if isinstance(event, Said)]
        text = "".join(piece.text for piece in said)
        tokens = [piece.token for piece in said if piece.token is not None]
        echo, scored = "", None
        if isinstance(events[0], Opened):
            echo, scored = self._echo(asked, index), events[0].scored
        offset = self._offsets.get(index, 0) + len(echo)
        self._offsets[index] = offset + len(text)
        logprobs = self._logprobs_of(asked, tokens, offset, scored) if tokens or scored else None
        return TextChoice(index, echo + text, logprobs=logprobs)

    def _logprobs_of(
        self, asked: Asked, tokens: Sequence[TokenInfo], offset: int, scored: ScoredText | None
    ) -> TextLogprobs | None:
        if not self._logprobs:
            return None
        found = text_logprobs(tokens, asked.asker.tokenizer, offset)
        return found if scored is None else joined(prompt_logprobs(scored, asked.asker.tokenizer), found)

    def _echo(self, asked: Asked, index: int) -> str:
        return self._echoed[index // asked.per_prompt]

    def _document(self, asked: Asked, choices: list[TextChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage)
