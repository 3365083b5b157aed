"""What `p2pgrid completion` prints does complete, in the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from p2pgrid.cli.app import run

TYPED = {
    "swar": "swarm",
    "models pu": "pull",
    "keys rev": "revoke",
    "completion z": "zsh",
    "generate --exa": "--exact",
    "generate --wire in": "int8",
    "keys add --requests": "--requests-per-min",
    "keys add --scope a": "admin",
    "status --json --boot": "--bootstrap",
}
"""What is typed behind `p2pgrid`, and what its last word becomes."""

BASH = """
source "$1"; shift
complete -p p2pgrid >/dev/null || exit 1
for line; do
  COMP_WORDS=(p2pgrid $line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _p2pgrid
  echo "${COMPREPLY[*]}"
done
"""
FISH = """
source $argv[1]
for line in $argv[2..]
  complete -C "p2pgrid $line" | cut -f 1 | string join " "
end
"""
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=(${1:h} \$fpath); autoload -U compinit; compinit -D -u"
zpty -w shell 'shown() { print -r -- "<""<$BUFFER>>" }; zle -N shown; bindkey "^X" shown'
shift
for line; do
  zpty -w -n shell "p2pgrid $line"$'\t\x18'
  zpty -r -m shell said '*<<*>>*'
  print -r -- ${${said##*<<}%%>>*}
  zpty -w -n shell $'\C-u'
done
zpty -d shell
"""
"""zsh completes only for somebody who types: the key after Tab shows what the line has become."""

SHELLS = {
    "bash": (BASH, ["bash", "--norc", "-c"], "p2pgrid"),
    "fish": (FISH, ["fish", "--no-config", "-c"], "p2pgrid.fish"),
    "zsh": (ZSH, ["zsh", "-f", "-c"], "_cyclopts_p2pgrid"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_that_has_read_the_script_completes(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    script, command, file_name = SHELLS[shell]
    assert run(["completion", shell]) == 0
    path = tmp_path / file_name
    path.write_text(capsys.readouterr().out)
    arguments = [path, *TYPED] if shell == "fish" else [shell, path, *TYPED]
    asked = subprocess.run([*command, script, *arguments], capture_output=True, text=True, timeout=60, check=False)
    last_words = [line.split()[-1] if line.strip() else "" for line in asked.stdout.splitlines()]
    assert dict(zip(TYPED, last_words, strict=False)) == TYPED, asked.stderr


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
