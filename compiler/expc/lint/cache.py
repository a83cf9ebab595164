"""Lint's memory: findings of a file, as long as nothing that they rest on has changed.

Imports no more than reading JSON needs: a cached lint should cost little more than starting Python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expc import __version__
from expc.findings import Edit, Finding, Note, Span

if TYPE_CHECKING:
    from expc.lint.core import Severity

FOLDER = Path(".expc", "cache", "lint")

Need = tuple[Literal["text", "there", "found", "stat"], str]
"""What findings rest on: the text of a file, whether it is there, what a pattern finds, or the size and time of data."""

Known = tuple[tuple[Finding, ...], dict[str, "Severity"], dict[tuple[str, int], str], bool]


def load(path: Path, root: Path) -> Known | None:
    """What was found in a file, if it still holds."""
    try:
        entry = json.loads(_place(path, root).read_bytes())
        if entry["tool"] != _tool():
            return None
        if any(_state((kind, name)) != state for kind, name, state in entry["needs"]):
            return None
        lines = {(file, number): text for file, number, text in entry["lines"]}
        findings = tuple(_finding(each) for each in entry["findings"])
        return findings, entry["severities"], lines, bool(entry["unprofiled"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(
    path: Path,
    root: Path,
    needs: Iterable[Need],
    findings: Iterable[Finding],
    severities: Mapping[str, str],
    lines: Mapping[tuple[str, int], str],
    unprofiled: bool,
) -> None:
    """Remember what was found in a file. A project that can't be written to is linted anew each time."""
    entry = {
        "tool": _tool(),
        "needs": [[kind, name, _state((kind, name))] for kind, name in needs],
        "findings": [_plain(finding) for finding in findings],
        "severities": dict(severities),
        "lines": [[file, number, text] for (file, number), text in lines.items()],
        "unprofiled": unprofiled,
    }
    place = _place(path, root)
    scratch = place.with_suffix(f".{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(entry), encoding="utf-8")
        os.replace(scratch, place)
    except OSError:
        with suppress(OSError):
            scratch.unlink()


def _place(path: Path, root: Path) -> Path:
    name = blake2b(os.fsencode(path.resolve()), digest_size=12).hexdigest()
    return root / FOLDER / f"{name}.json"


def _state(need: Need) -> str:
    kind, name = need
    if kind == "there":
        return "yes" if os.path.exists(name) else "no"
    if kind == "found":
        import glob

        return "\n".join(sorted(glob.glob(name, recursive=True)))
    try:
        if kind == "stat":
            stat = os.stat(name)
            return f"{stat.st_size} {stat.st_mtime_ns}"
        with open(name, "rb") as file:
            return blake2b(file.read(), digest_size=16).hexdigest()
    except OSError:
        return "no"


@cache
def _tool() -> str:
    """Names this version of the tool, and in a checkout its every edit."""
    seen = blake2b(__version__.encode(), digest_size=16)
    waiting = [os.path.dirname(os.path.dirname(__file__))]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.is_dir():
                    if entry.name != "__pycache__":
                        waiting.append(entry.path)
                elif entry.name.endswith(".py"):
                    stat = entry.stat()
                    seen.update(f"{entry.name} {stat.st_size} {stat.st_mtime_ns};".encode())
    return seen.hexdigest()


# ---------------------------------------------------------------------------------------- findings as JSON


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "message": finding.message,
        "span": _flat(finding.span),
        "why": finding.why,
        "help": finding.help,
        "notes": [[_flat(note.span), note.text] for note in finding.notes],
        "fix": [[_flat(edit.span), edit.text, edit.safe] for edit in finding.fix],
        "spans": [_flat(span) for span in finding.spans],
    }


def _finding(entry: Mapping[str, Any]) -> Finding:
    return Finding(
        entry["code"],
        entry["message"],
        Span(*entry["span"]),
        entry["why"],
        entry["help"],
        tuple(Note(Span(*span), text) for span, text in entry["notes"]),
        tuple(Edit(Span(*span), text, safe) for span, text, safe in entry["fix"]),
        tuple(Span(*span) for span in entry["spans"]),
    )


def _flat(span: Span) -> list[str | int]:
    return [span.file, span.line, span.col, span.end_line, span.end_col, span.start, span.end]
