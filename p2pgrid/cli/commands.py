"""The commands by name, with what each does in a line: `p2pgrid --help` need not import them to say it."""

from typing import TYPE_CHECKING

from cyclopts.help import DefaultFormatter

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

COMMANDS = {
    "swarm": "a whole network on this machine, to try it",
    "generate": "ask a model once",
    "chat": "talk with a model",
    "score": "how likely a model finds a text",
    "node": "serve some layers of a model",
    "drain": "have a node leave in good order",
    "bootstrap": "a peer through which others join",
    "serve": "answer OpenAI's clients and browsers",
    "keys": "who may use a gateway",
    "models": "get models onto this machine, see them, remove them",
    "status": "whether models can be used, and why not",
    "top": "watch the swarm",
    "doctor": "is this machine fit, and what to do if not",
    "bench": "measure",
    "sim": "a whole swarm in memory, from a seed",
    "completion": "have a shell complete commands",
}
GROUPS = ("models", "keys", "bench")
"""Those that have commands of their own."""


class CommandList(DefaultFormatter):
    """Help as usual, but for what the list of all commands says of each."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        listed = {name for entry in panel.entries for name in entry.names}
        if listed >= COMMANDS.keys():
            panel.entries = [
                entry.copy(description=COMMANDS.get(next(iter(entry.names)), entry.description))
                for entry in panel.entries
            ]
        super().__call__(console, options, panel)
