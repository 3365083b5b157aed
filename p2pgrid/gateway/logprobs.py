"""Log-probabilities in the two forms that OpenAI's protocol has for them."""

from collections.abc import Sequence

from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.gateway.documents import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob
from p2pgrid.node.answer import ScoredText, TokenInfo


def chat_logprobs(tokens: Sequence[TokenInfo], tokenizer: Tokenizer) -> ChatLogprobs:
    """Of tokens that were asked for with log-probabilities."""
    return ChatLogprobs([_token(info, tokenizer) for info in tokens])


def _token(info: TokenInfo, tokenizer: Tokenizer) -> TokenLogprob:
    top = [TopLogprob(tokenizer.name_of(each.token), _logprob(each), list(each.data)) for each in info.top]
    return TokenLogprob(tokenizer.name_of(info.token), _logprob(info), list(info.data), top)


def text_logprobs(tokens: Sequence[TokenInfo], tokenizer: Tokenizer, offset: int) -> TextLogprobs:
    """Of tokens of an answer, whose text begins at `offset`."""
    found = TextLogprobs([], [], [], [])
    for info in tokens:
        offset = _append(found, info.token, _logprob(info), info.top, tokenizer, offset)
    return found


def prompt_logprobs(scored: ScoredText, tokenizer: Tokenizer) -> TextLogprobs:
    """Of a prompt that was scored: of its first token nothing is known."""
    found = TextLogprobs([], [], [], [])
    known: list[tuple[float | None, Sequence[TokenInfo]]] = [(None, ())]
    known += zip(scored.next_logprobs, scored.top[:-1], strict=True)
    offset = 0
    for token, (logprob, top) in zip(scored.token_ids, known, strict=True):
        offset = _append(found, token, logprob, top, tokenizer, offset)
    return found


def joined(first: TextLogprobs, then: TextLogprobs) -> TextLogprobs:
    return TextLogprobs(
        [*first.tokens, *then.tokens],
        [*first.token_logprobs, *then.token_logprobs],
        [*first.top_logprobs, *then.top_logprobs],
        [*first.text_offset, *then.text_offset],
    )


def _append(
    found: TextLogprobs,
    token: int,
    logprob: float | None,
    top: Sequence[TokenInfo],
    tokenizer: Tokenizer,
    offset: int,
) -> int:
    """Where the next token begins in the text."""
    found.tokens.append(tokenizer.name_of(token))
    found.token_logprobs.append(logprob)
    likely = {tokenizer.name_of(each.token): _logprob(each) for each in top}
    if logprob is not None:
        likely[tokenizer.name_of(token)] = logprob  # also where it is none of the likeliest
    found.top_logprobs.append(likely if logprob is not None else None)
    found.text_offset.append(offset)
    return offset + len(tokenizer.bytes_of(token).decode("utf-8", "replace"))


def _logprob(info: TokenInfo) -> float:
    assert info.logprob is not None, "asked for"
    return info.logprob
