"""`p2pgrid completion`: what a shell must know to complete commands and options."""

import sys
from typing import Literal

from p2pgrid.cli.app import app


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script by which a shell completes commands and options of p2pgrid on Tab.

    For bash: put it into ~/.local/share/bash-completion/completions/p2pgrid. For fish: into
    ~/.config/fish/completions/p2pgrid.fish. For zsh: into a file _p2pgrid in a directory of its $fpath.

    Example: p2pgrid completion bash > ~/.local/share/bash-completion/completions/p2pgrid
    """
    sys.stdout.write(app.generate_completion(prog_name="p2pgrid", shell=shell))
