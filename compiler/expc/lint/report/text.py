"""Findings for people: what is wrong, the place with a caret, a second place, one action."""

from __future__ import annotations

from collections.abc import Sequence

from expc.findings import Finding, Span
from expc.lint.engine import FileReport

_COLOURS = {
    "error": "\033[1;31m",
    "warning": "\033[1;33m",
    "place": "\033[1;34m",
    "bold": "\033[1m",
}
_END = "\033[0m"


def render(reports: Sequence[FileReport], *, colour: bool = False) -> str:
    """The findings of every report, and a line that counts them; nothing when there are none."""

    def paint(text: str, what: str) -> str:
        return f"{_COLOURS[what]}{text}{_END}" if colour and text else text

    blocks = [_block(finding, report, paint) for report in reports for finding in report.findings]
    return "\n".join([*blocks, _summary(reports)]) if blocks else ""


def _block(finding: Finding, report: FileReport, paint) -> str:  # type: ignore[no-untyped-def]
    span = finding.span
    text = report.lines.get((span.file, span.line), "")
    wide = max(len(str(line)) for line in (span.line, *(n.span.line for n in finding.notes)))
    bar = paint(" " * wide + " |", "place")
    code = paint(finding.code, report.severity(finding))
    lines = [
        f"{code}: {paint(finding.message, 'bold')}",
        f"{paint(' ' * wide + '-->', 'place')} {span}",
    ]
    if text.strip():
        number = paint(f"{span.line:>{wide}} |", "place")
        lines += [
            bar,
            f"{number} {text}",
            f"{bar} {paint(_caret(span, text), report.severity(finding))}",
        ]
    equals = paint(" " * wide + " =", "place")
    lines += [f"{equals} note: {note.text} ({_second(note.span, span)})" for note in finding.notes]
    if finding.why:
        lines.append(f"{equals} note: {finding.why}")
    if finding.help:
        mends = "   [fix available]" if any(edit.safe for edit in finding.fix) else ""
        lines.append(f"{equals} help: {finding.help}{mends}")
    return "\n".join(lines) + "\n"


def _second(place: Span, first: Span) -> str:
    """A second place; its file goes without saying when it is the first one's."""
    return f"{place.line}:{place.col}" if place.file == first.file else str(place)


def _caret(span: Span, text: str) -> str:
    """Carets under the stretch, as far as it goes on its first line; tabs stay tabs."""
    before = text[: span.col - 1]
    end = span.end_col if span.end_line == span.line else len(text) + 1
    lead = "".join("\t" if char == "\t" else " " for char in before)
    return lead + "^" * max(1, end - span.col)


def _summary(reports: Sequence[FileReport]) -> str:
    found = [(report.severity(f), f) for report in reports for f in report.findings]
    errors = sum(severity == "error" for severity, _ in found)
    counts = [_count(errors, "error"), _count(len(found) - errors, "warning")]
    fixable = sum(any(edit.safe for edit in finding.fix) for _, finding in found)
    mends = f" `expc lint --fix` repairs {fixable}." if fixable else ""
    first = found[0][1].code
    return f"{', '.join(filter(None, counts))}.{mends} `expc rule {first}` explains.\n"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}" if number else ""
