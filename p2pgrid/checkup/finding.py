"""What a check found."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]
WORSE: tuple[Verdict, ...] = ("ok", "warning", "problem")


@dataclass(frozen=True)
class Finding:
    """One line about one thing."""

    about: str
    verdict: Verdict
    says: str
    remedy: str = ""
    """What to do; none where all is well."""


def worst(findings: Iterable[Finding]) -> Verdict:
    return max((finding.verdict for finding in findings), key=WORSE.index, default="ok")
