"""Comments that allow a finding: `# expc: allow NAME -- reason`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from expc.findings import Edit, Finding, Span, suggest
from expc.lint.core import Rule, ToldRule, rules
from expc.source import Allow, Source


def apply(
    sources: Sequence[Source], findings: Iterable[Finding], *, finished: bool
) -> Iterator[Finding]:
    """The findings that no comment allows, and what is wrong with the comments.

    A comment covers the findings of its line. Whether it is needed can be said only when every rule has run.
    """
    covers: dict[tuple[str, int], list[Allow]] = {}
    for source in sources:
        for comment in source.allows:
            covers.setdefault((source.file, comment.line), []).append(comment)
    used: set[Span] = set()
    for finding in findings:
        allow = _allowing(finding, covers)
        if allow is None:
            yield finding
        else:
            used.add(allow.span)
    for comment in sources[0].allows if sources else ():
        yield from _problems(comment, sources[0], used=comment.span in used, finished=finished)


def _allowing(finding: Finding, covers: dict[tuple[str, int], list[Allow]]) -> Allow | None:
    rule = Rule.registry[finding.code]
    if issubclass(rule, ToldRule):
        return None  # nothing could be compiled from it
    for span in (finding.span, *finding.spans):
        for allow in covers.get((span.file, span.line), ()):
            if allow.name == rule.name:
                return allow
    return None


def _problems(allow: Allow, source: Source, *, used: bool, finished: bool) -> Iterator[Finding]:
    known = {rule.name: rule for rule in rules()}
    if allow.name not in known:
        yield _unknown(allow, list(known))
    elif not allow.reason:
        yield Finding(
            "XC008",
            f"this allows `{allow.name}` and does not say why",
            allow.span,
            why="whoever reads the result must know that the fault is meant",
            help=f"write `# expc: allow {allow.name} -- the reason`",
        )
    elif issubclass(known[allow.name], ToldRule):
        yield Finding(
            "XC009",
            f"`{allow.name}` can't be allowed: nothing could be compiled from it",
            allow.span,
            help="remove the comment and mend the spec",
            fix=(_without(allow, source),),
        )
    elif finished and not used:
        yield Finding(
            "XC009",
            f"nothing on this line needs `allow {allow.name}`",
            allow.span,
            why="it would hide the next fault of that name",
            help="remove the comment",
            fix=(_without(allow, source),),
        )


def _unknown(allow: Allow, names: list[str]) -> Finding:
    by_code = Rule.registry.get(allow.name.upper())
    near = by_code.name if by_code else suggest(allow.name, names).removeprefix("did you mean ")
    near = near.strip("`?")
    return Finding(
        "XC010",
        f"there is no rule `{allow.name}` to allow",
        allow.name_span,
        help=f"did you mean `{near}`?" if near else "`expc rule --all` lists the names",
        fix=(Edit(allow.name_span, near),) if near else (),
    )


def _without(allow: Allow, source: Source) -> Edit:
    """Take the comment out, with the blanks before it; with its whole line when it stands alone."""
    line_start = source.text.rfind("\n", 0, allow.span.start) + 1
    before = source.text[line_start : allow.span.start]
    start, end = allow.span.start, allow.span.end
    if not before.strip():
        return Edit(_stretch(allow, line_start, end + (source.text[end : end + 1] == "\n")), "")
    return Edit(_stretch(allow, start - (len(before) - len(before.rstrip())), end), "")


def _stretch(allow: Allow, start: int, end: int) -> Span:
    span = allow.span
    return Span(span.file, span.line, span.col, span.end_line, span.end_col, start, end)
