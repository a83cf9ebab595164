"""What the compiler tells a person: a place, what is wrong, why it matters, one action."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of a file. Lines and columns count from 1; `start` and `end` are character offsets."""

    file: str
    line: int
    col: int
    end_line: int = 0
    end_col: int = 0
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text of a span. `safe` edits keep what the author meant; `--fix` makes only those."""

    span: Span
    text: str
    safe: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """A second place that belongs to a finding."""

    span: Span
    text: str


@dataclass(frozen=True)
class Finding:
    """One thing to tell. `code` names the rule whose page explains it and says how severe it is."""

    code: str
    message: str
    span: Span
    why: str = ""
    help: str = ""
    notes: tuple[Note, ...] = ()
    fix: tuple[Edit, ...] = ()
    spans: tuple[Span, ...] = field(default=(), compare=False)  # lines an allow may stand on


class SpecError(Exception):
    """The spec can't be read any further; carries everything found so far."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join(finding.message for finding in findings))
        self.findings = findings


def suggest(word: str, choices: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing when no choice is near."""
    every = list(choices)
    near = [name for name in every if len(word) > 3 and name.startswith((f"{word}_", f"{word}."))]
    near = near or difflib.get_close_matches(word, every, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""


def an(word: str) -> str:
    """A word with its article."""
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message: `a`, `b`, `c`, and how many more there are."""
    every = list(names)
    shown = ", ".join(f"`{name}`" for name in every[:limit])
    more = len(every) - limit
    return f"{shown} and {more} more" if more > 0 else shown
