"""A connection to a swarm: ask its models, score texts, see what there is."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypedDict, Unpack

import msgspec
import trio

from p2pgrid.api.models import Advance, Models, SwarmModels, open_local_model
from p2pgrid.api.stream import AnswerStream
from p2pgrid.errors import BadInput
from p2pgrid.node.answer import ScoredText
from p2pgrid.node.bare_errors import bare_errors
from p2pgrid.node.logs import log_unless_configured
from p2pgrid.node.request import Chat, ChatMessage, Request
from p2pgrid.node.survey import ModelSurvey
from p2pgrid.node.wiring import default_bootstrap, model_store, open_network
from p2pgrid.storage.catalogue import DEFAULT_MODEL
from p2pgrid.wire.messages import Sampling, WireChoice


class Options(TypedDict, total=False):
    """What may be said of an answer besides its prompt."""

    model: str
    max_tokens: int
    """256 if nothing is said."""
    temperature: float
    """0, the default, takes the likeliest token each time."""
    top_p: float
    top_k: int
    """0 = all."""
    seed: int
    """The same one gives the same answer, on any swarm."""
    presence_penalty: float
    """Taken from the logit of every token that the answer has already."""
    frequency_penalty: float
    """Taken from it once more for each time that the answer has the token."""
    logit_bias: Mapping[int, float]
    """What is added to the logits of which token ids."""
    logprobs: int
    """`AnswerStream.tokens` have log-probabilities, and so many of the likeliest ones (at most 20) beside each."""
    stop: str | Sequence[str]
    """The answer ends before the first of these texts."""
    cache_scope: str
    """Prompts that begin alike are computed once among those with the same scope."""
    wire: WireChoice
    """How stages send each other hidden states."""
    exact: bool
    """Compute each token before the next one is begun."""


class Grid:
    """Made by `connect`, and good for as long as its context lasts. Any number of answers may run at once."""

    def __init__(self, models: Models, tasks: trio.Nursery, model: str = DEFAULT_MODEL) -> None:
        self._models = models
        self._tasks = tasks
        self._model = model

    async def models(self) -> list[ModelSurvey]:
        """Every model with a name on this machine and a node in the swarm: whether it can be used, who serves it.

        Where nobody has seen a token go through a model lately, one is sent.
        """
        return await self._models.surveys()

    def generate(self, prompt: str, *, raw: bool = False, **options: Unpack[Options]) -> AnswerStream:
        """Ask something; iterate over the result for its text, piece by piece.

        `raw` sends the prompt without the model's chat template. Raises BadInput for an option out of its range; the
        rest is raised by the stream.
        """
        return self._stream(prompt, raw, **options)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Unpack[Options]) -> AnswerStream:
        """Go on with a conversation: each message has a `role` (`system`, `user`, `assistant`) and its `content`.

        All else is as for `generate`.
        """
        try:
            turns = tuple(ChatMessage(message["role"], message["content"]) for message in messages)
        except (KeyError, TypeError):
            raise BadInput("each message needs a role and a content, both text") from None
        return self._stream(Chat(turns), False, **options)

    async def score(self, text: str, *, model: str | None = None, top: int = 0) -> ScoredText:
        """How likely the model finds `text`: the log-probability of each token after the first, and their mean.

        With `top`, also so many of the likeliest tokens (at most 20) everywhere.

        Raises BadInput, NoRoute, Overloaded, PeerUnavailable, PeerMisbehaved, LocalFault.
        """
        return await self._models.score(model or self._model, text, top)

    def _stream(
        self,
        prompt: str | Chat,
        raw: bool,
        *,
        model: str | None = None,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        cache_scope: str = "",
        wire: WireChoice = "fp32",
        exact: bool = False,
        logprobs: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        **sampling: Any,
    ) -> AnswerStream:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        drawn = _sampling({**sampling, "logit_bias": tuple((logit_bias or {}).items())})
        asked = Request(prompt, raw, max_tokens, drawn, stops, cache_scope, wire, exact, logprobs)
        return AnswerStream(self._tasks, partial(self._models.answer, model or self._model, asked))


@asynccontextmanager
async def connect(
    bootstrap: str | Sequence[str] = (),
    *,
    model: str = DEFAULT_MODEL,
    local: bool = False,
    on_progress: Advance | None = None,
) -> AsyncIterator[Grid]:
    """Join a swarm as a client that holds no weights, until the context ends.

    `bootstrap` names peers to join through, as multiaddrs that end in `/p2p/ID`; without any, those that ship with
    p2pgrid are taken, and if there are none, the local network is searched. `model` is the one that is asked when a
    call names none. With `local` that model is loaded into this process instead, and no network is used; `on_progress`
    hears `(done, total)` of that.

    Raises BadInput for a wrong address, PeerUnavailable when no bootstrap peer answers, LocalFault for this machine.
    """
    log_unless_configured()
    with bare_errors():
        if local:
            async with open_local_model(model, on_progress) as own, opened_grid(own, model) as grid:
                yield grid
        else:
            given = [bootstrap] if isinstance(bootstrap, str) else list(bootstrap)
            async with (
                open_network(given or default_bootstrap()) as peer,
                opened_grid(SwarmModels(peer, model_store()), model) as grid,
            ):
                yield grid


@asynccontextmanager
async def opened_grid(models: Models, model: str) -> AsyncIterator[Grid]:
    """A grid over `models`; answers that still run when the context ends are ended."""
    async with trio.open_nursery() as tasks:
        yield Grid(models, tasks, model)
        tasks.cancel_scope.cancel()


def _sampling(values: Mapping[str, Any]) -> Sampling:
    """Raises BadInput naming the value that is out of its range, TypeError for an option that there is not."""
    if unknown := values.keys() - set(Sampling.__struct_fields__):
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    try:
        return msgspec.convert(values, Sampling)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        raise BadInput(f"{name}={values.get(name)!r}: {what[:1].lower()}{what[1:]}") from None
