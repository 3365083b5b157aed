"""How many tokens it were: of whole answers, and of streams that are asked to say so."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from p2pgrid.gateway.answering import Asked, Done, Event, Said
from p2pgrid.gateway.documents import PromptDetails, Usage
from p2pgrid.gateway.schema import StreamOptions


def usage_of(asked: Asked, done: Sequence[Done]) -> Usage:
    """A prompt counts once, however many choices there are."""
    answers = [each.answer for each in done]
    prompts = answers[:: asked.per_prompt]
    prompt = sum(answer.prompt_tokens for answer in prompts)
    completion = sum(len(answer.token_ids) for answer in answers)
    cached = sum(answer.cached_tokens for answer in prompts)
    return Usage(prompt, completion, prompt + completion, PromptDetails(cached))


class StreamedUsage:
    """What the chunks of one stream say of it."""

    def __init__(self, options: StreamOptions | None) -> None:
        self._at_end = options is not None and bool(options.include_usage)
        self._so_far = options is not None and bool(options.continuous_usage_stats)
        self._tokens: Counter[int] = Counter()
        """Of each choice, until now."""

    def after(self, asked: Asked, index: int, events: Sequence[Event]) -> Usage | msgspec.UnsetType | None:
        """For the chunks that tell of `events`, the next ones of choice `index`."""
        self._tokens[index] += sum(isinstance(event, Said) and event.piece.token is not None for event in events)
        if self._so_far:
            prompt, completion = asked.prompt_tokens[index], self._tokens[index]
            return Usage(prompt, completion, prompt + completion)
        return None if self._at_end else msgspec.UNSET

    def last(self, asked: Asked, done: Sequence[Done]) -> Usage | None:
        """For a chunk of its own after all others, if one is wanted."""
        return usage_of(asked, done) if self._at_end else None
