"""From a user's prompt to an answer, over a swarm or in this one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from p2pgrid.core.drawing import Drawer
from p2pgrid.core.generation import Generation
from p2pgrid.core.text import TextStream
from p2pgrid.engine.executor import LaneExecutor
from p2pgrid.engine.json_schema import JsonGrammar, JsonGrammars
from p2pgrid.engine.stage import Executor, Stage
from p2pgrid.engine.tokenizer import Tokenizer
from p2pgrid.errors import BadInput
from p2pgrid.node.answer import Answer, Piece, ScoredText, Session, Show, generate, score
from p2pgrid.node.client import ModelDescription, open_session
from p2pgrid.node.peer import Peer
from p2pgrid.services.local import LocalSession
from p2pgrid.services.pipeline import Terms
from p2pgrid.settings import PipelineSettings, StageSettings
from p2pgrid.wire.messages import LOGPROBS_MAX, Sampling, WireChoice


@dataclass(frozen=True)
class ChatMessage:
    """A turn of a conversation. Which roles there are is up to the model's chat template."""

    role: str
    """`system`, `user`, `assistant`, …"""
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation that the model goes on with, in its chat template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True)
class TokenIds:
    """A prompt that goes to the model exactly as it is."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What somebody asks of a model."""

    prompt: str | Chat | TokenIds
    """A text is what a user says, unless `raw`."""
    raw: bool = False
    """A text goes to the model as it stands, without the chat template."""
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    cache_scope: str = ""
    """Prompts are looked for, and kept, among those of requests with the same scope."""
    wire: WireChoice = "fp32"
    exact: bool = False
    """No drafts: every token is computed before the next one is begun."""
    logprobs: int | None = None
    """Log-probabilities come with each token, and those of so many of the likeliest ones; at most 20."""
    json_schema: str = ""
    """The answer is JSON that fits this schema, unless `max_tokens` or `stop` cut it off."""


def _let_it_run(session: Session) -> None:
    """Nobody watches."""


class Asker:
    """Answers requests with one model, known by its description."""

    def __init__(
        self,
        description: ModelDescription,
        stage: StageSettings,
        pipeline: PipelineSettings,
        lane: Executor | None = None,
    ) -> None:
        """Schemas are compiled in `lane`; None = one of its own."""
        self.description = description
        self.tokenizer = Tokenizer(description.tokenizer)
        self.context_max = min(stage.context_max, description.manifest.context)
        self._chunk = pipeline.prefill_chunk
        self._grammars = JsonGrammars(description.tokenizer, lane or LaneExecutor())

    def prompt_ids(self, request: Request) -> list[int]:
        """The prompt's token ids. Raises BadInput."""
        match request.prompt:
            case TokenIds(ids=ids):
                return self._known(ids)
            case Chat(messages=messages):
                return self.tokenizer.chat([{"role": one.role, "content": one.content} for one in messages])
            case str() as text if request.raw:
                return self.tokenizer.prompt(text)
            case str() as text:
                return self.tokenizer.chat([{"role": "user", "content": text}])

    def check(self, request: Request) -> None:
        """Raises BadInput for a request that can never be answered, before anybody is asked. For its schema, see
        `grammar_of`.
        """
        self._generation(request, run_ahead=True)

    async def grammar_of(self, request: Request) -> JsonGrammar | None:
        """What the answer is held to, if there is a schema. Raises BadSchema for one that no stage would take."""
        return await self._grammars.grammar(request.json_schema) if request.json_schema else None

    async def over_swarm(
        self, peer: Peer, request: Request, show: Show, opened: Callable[[Session], None] = _let_it_run
    ) -> Answer:
        """`opened` is told of the session when it stands, and may ask it where it runs until this returns.

        Raises BadInput (BadSchema also in mid-answer), NoRoute, Overloaded, PeerUnavailable, PeerMisbehaved.
        """
        generation = self._generation(request, run_ahead=True)
        layers = self.description.manifest.layers
        terms = Terms(
            sampling=request.sampling,
            stop_tokens=tuple(self.tokenizer.stops),
            prompt=generation.prompt,
            positions=generation.positions,
            cache_scope=request.cache_scope,
            wire=request.wire,
            exact=request.exact,
            logprobs=request.logprobs,
            json_schema=request.json_schema,
        )
        grammar = await self.grammar_of(request)
        answer: list[int] = []

        def show_and_note(piece: Piece) -> None:
            if piece.token is not None:
                answer.append(piece.token.token)
            show(piece)

        async def check() -> None:
            if grammar is not None:
                await self._grammars.check(grammar, answer)

        async with open_session(peer, self.description.id, layers, terms, check) as session:
            opened(session)
            return await self._generate(session, generation, request, show_and_note)

    async def locally(self, stage: Stage, executor: Executor, request: Request, show: Show) -> Answer:
        """Raises BadInput, LocalFault."""
        generation = self._generation(request, run_ahead=False)
        drawer = Drawer(request.sampling, prompt_length=len(generation.prompt), logprobs=request.logprobs)
        drawer.grammar = await self.grammar_of(request)
        session = LocalSession(stage, executor, drawer)
        return await self._generate(session, generation, request, show)

    async def score_over_swarm(self, peer: Peer, text: str | TokenIds, top: int = 0) -> ScoredText:
        """Teacher-forced scores of `text`, and the `top` likeliest tokens (at most 20) everywhere in it.

        Raises as `over_swarm`.
        """
        ids = self._text_ids(text)
        terms = Terms(positions=len(ids), logprobs=self._checked(top))
        async with open_session(peer, self.description.id, self.description.manifest.layers, terms) as session:
            return await self._score(session, ids, top)

    async def score_locally(self, stage: Stage, executor: Executor, text: str | TokenIds, top: int = 0) -> ScoredText:
        """The same in this process. Raises BadInput, LocalFault."""
        session = LocalSession(stage, executor, Drawer(Sampling(), logprobs=self._checked(top)))
        return await self._score(session, self._text_ids(text), top)

    async def _score(self, session: Session, ids: Sequence[int], top: int) -> ScoredText:
        return await score(
            session,
            ids,
            context_max=self.context_max,
            chunk=self._chunk,
            top=top,
            bytes_of=self.tokenizer.bytes_of,
        )

    def _text_ids(self, text: str | TokenIds) -> list[int]:
        return self.tokenizer.prompt(text) if isinstance(text, str) else self._known(text.ids)

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Raises BadInput for what is no token of the model."""
        vocab = self.description.manifest.vocab
        if unknown := next((token for token in ids if not 0 <= token < vocab), None):
            raise BadInput(f"no such token: {unknown}; the model has {vocab}")
        return list(ids)

    def _checked(self, logprobs: int | None) -> int | None:
        """Raises BadInput for more alternatives than are told."""
        if logprobs is not None and not 0 <= logprobs <= LOGPROBS_MAX:
            raise BadInput(f"log-probabilities of {logprobs} alternatives: ask for 0 to {LOGPROBS_MAX}")
        return logprobs

    def _check_sampling(self, sampling: Sampling) -> None:
        """Raises BadInput for settings that no stage would take."""
        try:
            msgspec.convert(msgspec.to_builtins(sampling), Sampling)
        except msgspec.ValidationError as error:
            raise BadInput(f"the settings for sampling are wrong: {error}") from error
        self._known([token for token, _ in sampling.logit_bias])

    def _generation(self, request: Request, *, run_ahead: bool) -> Generation:
        self._checked(request.logprobs)
        self._check_sampling(request.sampling)
        return Generation(
            self.prompt_ids(request),
            max_tokens=request.max_tokens,
            stop_tokens=self.tokenizer.stops,
            context_max=self.context_max,
            chunk=self._chunk,
            run_ahead=run_ahead,
        )

    async def _generate(self, session: Session, generation: Generation, request: Request, show: Show) -> Answer:
        text = TextStream(request.stop)
        return await generate(
            session,
            generation,
            text=text,
            bytes_of=self.tokenizer.bytes_of,
            show=show,
            logprobs=request.logprobs,
        )
