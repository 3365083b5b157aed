"""`POST /v1/completions`: prompts that go to the model as they stand."""

from collections.abc import Iterable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.routing import Route

from p2pgrid.gateway.access import Caller
from p2pgrid.gateway.answering import Asked, Ended, Event, Opened, Said, how_it_came, usage_of
from p2pgrid.gateway.bodies import read_json
from p2pgrid.gateway.faults import ApiError, unsupported
from p2pgrid.gateway.gateway import Gateway
from p2pgrid.gateway.replies import StreamedReply, WholeReply
from p2pgrid.gateway.sampling import check_stream_options, choices_of, sampling_of, stops_of, wants_usage
from p2pgrid.gateway.schema import Completion, CompletionRequest, TextChoice, Usage
from p2pgrid.node.answer import Answer
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
        return reply(gateway, asked, CompletionShape(echoed, wants_usage(body)))

    return [Route("/v1/completions", complete, methods=["POST"])]


async def _asked(gateway: Gateway, body: CompletionRequest, caller: Caller) -> tuple[Asked, list[tuple[int, ...]]]:
    """And the token ids of the prompts. Raises ApiError or BadInput for all that is known without asking anybody."""
    check_stream_options(body)
    if body.logprobs is not None:
        raise unsupported("logprobs", "answers come without them")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "answers are not compared; leave it out, or give as many as n")
    max_tokens = TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens
    if max_tokens == 0:
        raise ApiError(400, "max_tokens is 0: ask for at least 1", param="max_tokens", code="invalid_value")
    model, name = gateway.models.find(body.model)
    asker = await gateway.models.asker(model)
    prompts = prompts_of(body.prompt, asker)
    choices = choices_of(body, len(prompts), gateway.limits)
    requests = [
        Request(
            TokenIds(prompt),
            max_tokens=max_tokens,
            sampling=sampling_of(body, choice),
            stop=stops_of(body),
            cache_scope=caller.id,
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

    def __init__(self, echoed: Sequence[str], usage: bool) -> None:
        self._echoed = echoed
        self._usage = usage

    def whole(self, asked: Asked, answers: Sequence[Answer]) -> msgspec.Struct:
        choices = [
            TextChoice(index, self._echo(asked, index) + answer.text, answer.finish_reason, p2pgrid=how_it_came(answer))
            for index, answer in enumerate(answers)
        ]
        return self._document(asked, choices, usage_of(asked, answers))

    def chunks(self, asked: Asked, events: Sequence[Event]) -> Iterable[msgspec.Struct]:
        for index in sorted({event.index for event in events}):
            own = [event for event in events if event.index == index]
            text = "".join(event.piece.text for event in own if isinstance(event, Said))
            if isinstance(own[0], Opened):
                text = self._echo(asked, index) + text
            if text:
                yield self._document(asked, [TextChoice(index, text)], self._no_usage)
            if isinstance(own[-1], Ended):
                answer = own[-1].answer
                choice = TextChoice(index, "", answer.finish_reason, p2pgrid=how_it_came(answer))
                yield self._document(asked, [choice], self._no_usage)

    def last_chunks(self, asked: Asked, answers: Sequence[Answer]) -> Iterable[msgspec.Struct]:
        if self._usage:
            yield self._document(asked, [], usage_of(asked, answers))

    @property
    def _no_usage(self) -> msgspec.UnsetType | None:
        return None if self._usage else msgspec.UNSET

    def _echo(self, asked: Asked, index: int) -> str:
        return self._echoed[index // asked.per_prompt]

    def _document(self, asked: Asked, choices: list[TextChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(asked.id, asked.created, asked.name, asked.fingerprint, choices, usage)
