"""`p2pgrid chat`: talk with a model, turn by turn."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from p2pgrid.api.blocking import BlockingGrid, BlockingStream, connect_blocking
from p2pgrid.api.grid import Options
from p2pgrid.cli.answers import summary
from p2pgrid.cli.chat_input import read_messages
from p2pgrid.cli.console import printable, progress_bar, say, stderr
from p2pgrid.cli.conversation import COMMANDS, Conversation, Quit, obey
from p2pgrid.cli.generate import sampling_of
from p2pgrid.cli.joining import joining
from p2pgrid.cli.options import DEFAULT_MODEL, Bootstrap, Exact, Local, Model, Wire
from p2pgrid.errors import P2pgridError
from p2pgrid.storage.paths import data_dir

HISTORY_FILE = "chat_history"


def chat(
    *,
    model: Model = DEFAULT_MODEL,
    bootstrap: Bootstrap = None,
    local: Local = False,
    system: Annotated[str, Parameter(help="Tell the model how to behave.")] = "",
    max_tokens: Annotated[int, Parameter(help="Of each answer.")] = 512,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest token.")] = 0.0,
    top_p: float = 1.0,
    top_k: Annotated[int, Parameter(help="0 = all.")] = 0,
    seed: int = 0,
    exact: Exact = False,
    wire: Wire = "fp32",
    history: Annotated[
        bool, Parameter(negative="--no-history", help="Keep what you type for the next time, in a file of your own.")
    ] = True,
) -> None:
    """Talk with a model: each answer knows what was said before. /help lists what else can be typed.

    Ctrl-C stops an answer, and at an empty prompt leaves; Alt-Enter begins a new line. Without a terminal each line
    of standard input is a message.

    Example: p2pgrid chat --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…
    """
    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        exact=exact,
        wire=wire,
    )
    sampling_of(temperature, top_p, top_k, seed)  # wrong ones are refused here, by the names that they have here
    peers = [] if local else joining(bootstrap)
    with ExitStack() as stack:
        with progress_bar("loading the model" if local else "joining the swarm") as advance:
            connecting = connect_blocking(peers, model=model, local=local, on_progress=advance)
            grid = stack.enter_context(connecting)
        say(f"{model}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        kept = data_dir() / HISTORY_FILE if history else None
        talk(grid, Conversation(model, system), options, read_messages(kept, list(COMMANDS)))


def talk(grid: BlockingGrid, conversation: Conversation, options: Options, messages: Iterator[str]) -> None:
    """Answer each message, until there are no more or one says /quit. What goes wrong is told, and the talk goes on."""
    for message in messages:
        try:
            if message.startswith("/"):
                say(obey(message, conversation))
            else:
                _answer(grid, conversation, options, message)
        except Quit:
            return
        except P2pgridError as error:
            say(f"p2pgrid: {error}")


def _answer(grid: BlockingGrid, conversation: Conversation, options: Options, said: str) -> None:
    ask = partial(grid.chat, model=conversation.model, cache_scope=conversation.cache_scope)
    stream = ask(conversation.messages(said), **options)
    shown: list[str] = []
    try:
        with stream, _ended_line(shown):
            for piece in _after_a_wait(stream):
                shown.append(piece)
                sys.stdout.write(printable(piece))
                sys.stdout.flush()
    except KeyboardInterrupt:
        say("[stopped; Ctrl-C again leaves]")
    else:
        conversation.answers.append(stream.answer)
        say(summary(stream.answer))
    if shown:
        conversation.add(said, "".join(shown))


def _after_a_wait(stream: BlockingStream) -> Iterator[str]:
    """The pieces of an answer, with a sign of life until the first one is there."""
    with stderr.status("…"):
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream


@contextmanager
def _ended_line(shown: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if shown:
            sys.stdout.write("\n")
            sys.stdout.flush()
