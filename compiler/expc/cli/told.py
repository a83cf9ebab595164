"""Findings on a terminal, in a file or in a pipe."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.findings import Finding, Span
    from expc.lint.engine import FileReport


def colour() -> bool:
    """Whether to colour: on a terminal, unless the person asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def show(reports: Sequence[FileReport]) -> None:
    """Print what lint found."""
    from expc.lint.engine import render_text

    click.echo(render_text(reports, colour()), nl=False, color=colour())


def tell(findings: Iterable[Finding]) -> None:
    """Print findings that ended a command before lint could look at more."""
    from expc.lint.engine import FileReport
    from expc.project import project_root

    root = project_root(Path.cwd())
    every = tuple(findings)
    spans = [span for f in every for span in (f.span, *(note.span for note in f.notes))]
    lines = {(span.file, span.line): _line(root, span) for span in spans}
    file = every[0].span.file
    show([FileReport(file, every, {f.code: "error" for f in every}, lines, finished=False)])


def _line(root: Path, span: Span) -> str:
    try:
        lines = (root / span.file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[span.line - 1] if 0 < span.line <= len(lines) else ""


def refuse(spec: Path) -> bool:
    """Whether lint keeps a spec from being compiled; if so, its errors are printed. Warnings get one line."""
    from dataclasses import replace

    from expc.lint.engine import lint_files

    report = lint_files([spec])[0]
    if report.blocking:
        show([replace(report, findings=report.blocking)])
        return True
    warnings = [f for f in report.findings if not f.code.startswith("XC9")]  # those, it mends
    warnings = [f for f in warnings if report.severity(f) == "warning"]
    if warnings:
        one = len(warnings) == 1
        count = "1 warning" if one else f"{len(warnings)} warnings"
        shows = f"expc lint {shlex.quote(str(spec))} shows {'it' if one else 'them'}"
        click.echo(f"{report.file}: {count}; {shows}", err=True)
    return False
