"""Lint spec files: every rule that can run, all findings at once, sorted by place.

What a cached answer needs is imported here; all else when a file must be read anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from expc.findings import Finding
from expc.lint import cache as store
from expc.project import project_root

if TYPE_CHECKING:
    from expc.lint.core import Rule, Severity


@dataclass(frozen=True)
class FileReport:
    """What lint says of one file.

    `lines` holds the text of every line that a finding names, by file and number. `finished` is False when an error
    kept later rules from running: more may come to light. `unprofiled` is that it reads data of which there are no facts.
    """

    file: str
    findings: tuple[Finding, ...]
    severities: Mapping[str, Severity]
    lines: Mapping[tuple[str, int], str] = field(default_factory=dict)
    finished: bool = True
    cached: bool = False
    unprofiled: bool = False

    def severity(self, finding: Finding) -> Severity:
        """How bad a finding of this report is."""
        return self.severities[finding.code]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that are errors."""
        return tuple(f for f in self.findings if self.severity(f) == "error")

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """Errors that stop a compile: all but those about the generated folder, which a compile is there to mend."""
        return tuple(f for f in self.errors if not f.code.startswith("XC9"))


def lint_files(paths: Iterable[Path | str], *, cache: bool = True) -> list[FileReport]:
    """Lint files, each on its own. Never raises for what a file holds: that becomes findings.

    An answer is taken from `.expc/cache` of the project when nothing that it rests on has changed: the file, what it
    extends, its own code, the lock of its generated folder, the files it names, and this tool.
    """
    return [_lint(Path(path), cache=cache) for path in paths]


def _lint(path: Path, *, cache: bool) -> FileReport:
    root = project_root(path)
    if cache:
        known = store.load(path, root)
        if known is not None:
            findings, severities, lines, unprofiled = known
            return FileReport(
                _name(path, root), findings, severities, lines, cached=True, unprofiled=unprofiled
            )
    from expc.lint.check import check

    checked = check(path, root)
    severities = {f.code: checked.severity(f.code) for f in checked.findings}
    lines = checked.lines()
    if cache and checked.finished and not checked.rests_on_environment():
        store.save(
            path, root, checked.needs, checked.findings, severities, lines, checked.unprofiled
        )
    return FileReport(
        checked.file,
        checked.findings,
        severities,
        lines,
        checked.finished,
        unprofiled=checked.unprofiled,
    )


def _name(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return path.as_posix()


def exit_code(reports: Iterable[FileReport]) -> int:
    """0 when there is nothing to say, else 1."""
    return int(any(report.findings for report in reports))


def rules() -> list[type[Rule]]:
    """Every rule, by code."""
    from expc.lint.core import rules as registered

    return registered()


def page(code: str) -> str:
    """The manual page of a code or a name, as Markdown. Raises KeyError, with a suggestion, when there is none."""
    from expc.lint.pages import page as written

    return written(code)


def render_text(reports: Iterable[FileReport], colour: bool = False) -> str:
    """Findings for people: place, line, caret, one action."""
    from expc.lint.report.text import render

    return render(list(reports), colour=colour)


def render_json(reports: Iterable[FileReport]) -> str:
    """Findings for programs: one JSON object on each line."""
    from expc.lint.report.jsonl import render

    return render(list(reports))


def render_github(reports: Iterable[FileReport]) -> str:
    """Findings as annotations of a GitHub workflow."""
    from expc.lint.report.github import render

    return render(list(reports))


def fix_file(path: Path | str) -> tuple[str, ...]:
    """Make the safe edits of a file's findings; what was done, one line for each edit. See `expc.lint.fix`."""
    from expc.lint.fix import fix_file as mend

    return mend(Path(path))
