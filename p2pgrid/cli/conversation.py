"""A conversation with a model, and the /commands that people give while they have it. No terminal in here."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from p2pgrid.cli.answers import summary
from p2pgrid.errors import BadInput, LocalFault
from p2pgrid.node.answer import Answer


@dataclass
class Conversation:
    """What was said until now, and to whom."""

    model: str
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    cache_scope: str = field(default_factory=lambda: secrets.token_hex(8))
    """Its own, so that each turn finds what stages kept of those before, and nobody else does."""

    def messages(self, said: str) -> list[dict[str, str]]:
        """All of it, with what the user says now."""
        begin = [{"role": "system", "content": self.system}] if self.system else []
        return [*begin, *self.turns, {"role": "user", "content": said}]

    def add(self, said: str, answered: str) -> None:
        self.turns += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]

    def begin_anew(self) -> None:
        self.turns.clear()
        self.answers.clear()
        self.cache_scope = secrets.token_hex(8)


class Quit(Exception):
    """The user has had enough."""


def obey(line: str, conversation: Conversation) -> str:
    """Carry out `/command argument`; what to tell the user. Raises BadInput, LocalFault, Quit."""
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise BadInput(f"there is no /{name}: /help lists the commands")
    return COMMANDS[name][1](conversation, argument.strip())


def _help(conversation: Conversation, argument: str) -> str:
    lines = [f"  /{name:<16} {told}" for name, (told, _) in COMMANDS.items()]
    keys = [
        "  Alt-Enter        a new line; so does a \\ at the end of one",
        "  Ctrl-C           stop an answer; at an empty prompt, quit",
    ]
    return "\n".join([*lines, *keys])


def _new(conversation: Conversation, argument: str) -> str:
    conversation.begin_anew()
    return "a new conversation"


def _model(conversation: Conversation, argument: str) -> str:
    if not argument:
        return f"this is {conversation.model}; /model NAME asks another one"
    conversation.model = argument
    return f"asking {argument} from now on"


def _system(conversation: Conversation, argument: str) -> str:
    conversation.system = argument
    conversation.begin_anew()
    return "a new conversation, " + (f"in which the model is told: {argument}" if argument else "and no instructions")


def _stats(conversation: Conversation, argument: str) -> str:
    answers = conversation.answers
    if not answers:
        return "no answer yet"
    tokens = sum(len(answer.token_ids) for answer in answers)
    last = answers[-1]
    kept = f"{last.cached_tokens} of {last.prompt_tokens} tokens of the last prompt were still there"
    return f"{len(answers)} answers, {tokens} tokens; {kept}\n{summary(last)}"


def _save(conversation: Conversation, argument: str) -> str:
    if not argument:
        raise BadInput("say where: /save FILE writes text, /save FILE.json what `messages` of a request take")
    path = Path(argument).expanduser()
    begin = [{"role": "system", "content": conversation.system}] if conversation.system else []
    messages: list[Mapping[str, str]] = [*begin, *conversation.turns]
    if path.suffix == ".json":
        text = msgspec.json.format(msgspec.json.encode(messages)).decode() + "\n"
    else:
        text = "\n".join(f"{message['role']}: {message['content']}\n" for message in messages)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LocalFault(f"cannot write {path}: {error.strerror}") from error
    return f"{len(messages)} messages are in {path}"


def _quit(conversation: Conversation, argument: str) -> str:
    raise Quit


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], str]]] = {
    "help": ("this list", _help),
    "new": ("forget what was said, and begin anew", _new),
    "model": ("NAME: ask another model; without one, say which", _model),
    "system": ("TEXT: tell the model how to behave, and begin anew", _system),
    "stats": ("how the last answer came about", _stats),
    "save": ("FILE: keep the conversation, as text or as .json", _save),
    "quit": ("leave", _quit),
}
