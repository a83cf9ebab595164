"""Findings as annotations of a GitHub workflow run."""

from __future__ import annotations

from collections.abc import Sequence

from expc.findings import Finding
from expc.lint.engine import FileReport


def render(reports: Sequence[FileReport]) -> str:
    """One workflow command for each finding; nothing when there are none."""
    return "".join(_command(finding, report) for report in reports for finding in report.findings)


def _command(finding: Finding, report: FileReport) -> str:
    span = finding.span
    place = {
        "file": span.file,
        "line": span.line,
        "col": span.col,
        "endLine": span.end_line or span.line,
        "endColumn": span.end_col or span.col,
        "title": finding.code,
    }
    given = ",".join(f"{key}={_property(str(value))}" for key, value in place.items())
    text = "\n".join(filter(None, (finding.message, finding.why, finding.help)))
    return f"::{report.severity(finding)} {given}::{_data(text)}\n"


def _data(text: str) -> str:
    """Escaped as the workflow commands ask for."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
