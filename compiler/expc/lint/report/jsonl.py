"""Findings for programs: one JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from expc.findings import Finding, Span
from expc.lint.engine import FileReport


def render(reports: Sequence[FileReport]) -> str:
    """One line for each finding; nothing when there are none."""
    return "".join(
        json.dumps(_plain(finding, report), ensure_ascii=False) + "\n"
        for report in reports
        for finding in report.findings
    )


def _plain(finding: Finding, report: FileReport) -> dict[str, Any]:
    return {
        "code": finding.code,
        "severity": report.severity(finding),
        "message": finding.message,
        **_place(finding.span),
        "why": finding.why,
        "help": finding.help,
        "notes": [{**_place(note.span), "message": note.text} for note in finding.notes],
        "fix": [
            {**_place(edit.span), "text": edit.text, "safe": edit.safe} for edit in finding.fix
        ],
    }


def _place(span: Span) -> dict[str, Any]:
    return {
        "file": span.file,
        "line": span.line,
        "column": span.col,
        "end_line": span.end_line or span.line,
        "end_column": span.end_col or span.col,
    }
