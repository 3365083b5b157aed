"""Values that people type: sizes, spans, prompts. Wrong ones raise BadInput."""

import re
from pathlib import Path

from p2pgrid.errors import BadInput
from p2pgrid.ids import Span

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `2GiB`, `1.5g`, `4096`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None or (found[3] and not found[2]):
        raise BadInput(f"{text!r} is no size: write it like 500MB or 2GiB")
    unit = _BINARY_UNITS[found[2]] if found[3] else _UNITS[found[2]]
    return int(float(found[1]) * unit)


def parse_layers(text: str) -> Span | None:
    """A span from `10:20`; None from `auto`."""
    if text == "auto":
        return None
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if found is None:
        raise BadInput(f"--layers {text!r}: write START:STOP like 0:10, or auto")
    try:
        return Span(int(found[1]), int(found[2]))
    except ValueError:
        raise BadInput(f"--layers {text}: the first layer must come before the last one, as in 10:20") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
