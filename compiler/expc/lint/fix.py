"""Mend what is safe to mend: edits by span, from the end of the file to its start. Nothing is printed anew."""

from __future__ import annotations

import os
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from expc.findings import Edit, Finding, SpecError
from expc.lint.check import check
from expc.project import project_root
from expc.source import parse

ROUNDS = 5
"""A mended fault may uncover another; so many times is enough for any spec that ends."""


def fix_file(path: Path) -> tuple[str, ...]:
    """Make the safe edits of a file's findings. Returns a line for each: place, code, what was done.

    An edit that leaves its finding, brings a new error, or breaks the file is dropped. The file is written whole or
    not at all.
    """
    path = path.resolve()
    root = project_root(path)
    done: list[tuple[int, str]] = []
    dropped: set[tuple[str, str]] = set()
    for _ in range(ROUNDS):
        made = _round(path, root, dropped)
        if not made:
            break
        done += made
    return tuple(line for _, line in sorted(done, key=lambda each: each[0]))


def _round(path: Path, root: Path, dropped: set[tuple[str, str]]) -> list[tuple[int, str]]:
    checked = check(path, root)
    fixable = [
        finding
        for finding in checked.findings
        if finding.fix
        and all(edit.safe and edit.span.file == checked.file for edit in finding.fix)
        and (finding.code, finding.message) not in dropped
    ]
    done = []
    for finding in sorted(_apart(fixable), key=lambda f: -min(e.span.start for e in f.fix)):
        before = path.read_bytes()
        mark = BOM_UTF8 if before.startswith(BOM_UTF8) else b""
        text = before.removeprefix(mark).decode("utf-8")
        mended = edited(text, finding.fix)
        if not _keeps_the_rest(text, mended, finding.fix):
            dropped.add((finding.code, finding.message))
            continue
        _write(path, mark + mended.encode("utf-8"))
        if _mended(finding, checked.findings, check(path, root).findings):
            done.append((finding.span.line, f"{finding.span}: {finding.code} {_said(finding)}"))
        else:
            _write(path, before)
            dropped.add((finding.code, finding.message))
    return done


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with edits made, from its end to its start."""
    for edit in sorted(edits, key=lambda each: -each.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def _apart(findings: Iterable[Finding]) -> list[Finding]:
    """Findings whose edits do not overlap; of those that do, the first."""
    chosen: list[Finding] = []
    taken: list[tuple[int, int]] = []
    for finding in findings:
        stretches = [(edit.span.start, edit.span.end) for edit in finding.fix]
        if any((a < d and c < b) or (a, b) == (c, d) for a, b in stretches for c, d in taken):
            continue
        chosen.append(finding)
        taken += stretches
    return chosen


def _keeps_the_rest(before: str, after: str, edits: Sequence[Edit]) -> bool:
    """Whether every key and value outside the edits reads as it did."""
    ordered = sorted(edits, key=lambda each: each.span.start)
    old, new, shift = [], [], 0
    for edit in ordered:
        old.append((edit.span.start, edit.span.end))
        start = edit.span.start + shift
        new.append((start, start + len(edit.text)))
        shift += len(edit.text) - (edit.span.end - edit.span.start)
    try:
        return list(_tokens(before, old)) == list(_tokens(after, new))
    except SpecError:
        return False


def _tokens(text: str, without: Sequence[tuple[int, int]]) -> Iterator[object]:
    """Keys and scalars in the order of the text, but for those inside the given stretches."""
    source = parse(text, "")
    keys = [(span.start, span.end, path[-1]) for path, span in source.keys.items()]
    scalars = [(each.span.start, each.span.end, each.value) for each in source.scalars]
    for start, end, token in sorted((*keys, *scalars), key=lambda each: each[:2]):
        if not any(a <= start and end <= b for a, b in without):
            yield token


def _mended(finding: Finding, before: Iterable[Finding], after: Iterable[Finding]) -> bool:
    """Whether the finding is gone, and no fault of the text has come in its place."""
    mine = (finding.code, finding.message)
    there = [(f.code, f.message) for f in before]
    left = [(f.code, f.message) for f in after]
    new = [each for each in left if each[0].startswith("XC0") and each not in there]
    return left.count(mine) < there.count(mine) and not new


def _said(finding: Finding) -> str:
    first = finding.fix[0]
    return f"`{first.text.strip()}`" if first.text.strip() else "removed"


def _write(path: Path, raw: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.write_bytes(raw)
    shutil.copymode(path, scratch)
    os.replace(scratch, path)
