"""`p2pgrid completion`: what a shell must know to complete commands and options."""

import re
import sys
from typing import Literal

from p2pgrid.cli.app import app

_FREE_ARGUMENT = re.compile(r"^( *'\d+:(?:[^:\\']|\\.|'\\'')+)' \\$", re.MULTILINE)
"""In a script for zsh, an argument that may be anything."""


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script by which a shell completes commands and options of p2pgrid on Tab.

    For bash: put it into ~/.local/share/bash-completion/completions/p2pgrid. For fish: into
    ~/.config/fish/completions/p2pgrid.fish. For zsh: into a file _cyclopts_p2pgrid, of that very name, in a directory
    of its $fpath.

    Example: p2pgrid completion bash > ~/.local/share/bash-completion/completions/p2pgrid
    """
    script = app.generate_completion(prog_name="p2pgrid", shell=shell)
    if shell == "zsh":
        # Where such an argument may stand zsh completes no options, unless it is said to have no choices.
        script = _FREE_ARGUMENT.sub(r"\1:( )' \\", script)
    sys.stdout.write(script)
