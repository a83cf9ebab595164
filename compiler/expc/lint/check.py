"""Run every rule over one spec. A step that can't go on adds its findings, and later steps are left out."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from expc.components.core import Use
from expc.experiment import Experiment
from expc.findings import Finding, Span, SpecError
from expc.fingerprint import sources
from expc.identity import files, identity, named
from expc.kinds.shapes import taken
from expc.lint.allows import apply
from expc.lint.cache import Need
from expc.lint.core import (
    AxisRule,
    FolderRule,
    Rule,
    Severity,
    SpecRule,
    StageRule,
    SweepRule,
    TextRule,
    rules,
)
from expc.lint.facts import facts_file, facts_of
from expc.lint.rules.sweeps import known_axes
from expc.lint.rules.text import number_meant
from expc.plan import order
from expc.policy import misfits
from expc.resolve import Document, Override, document, resolve, spec_path
from expc.signatures import NotFound, find
from expc.source import Source, name_of, read
from expc.sweep import Axis, Space, Variant, conditions, explore, is_excluded

EVERY_ROW = 16
"""Axes up to this length are checked at every value, longer ones at their ends and extremes."""

EVERY_POINT = 12
"""Grids up to this size are checked at every point."""


@dataclass
class Checked:
    """What was found in one file, and what that rests on."""

    file: str
    sources: tuple[Source, ...] = ()
    findings: tuple[Finding, ...] = ()
    needs: tuple[Need, ...] = ()
    finished: bool = False
    unprofiled: bool = False
    _texts: dict[str, list[str]] = field(default_factory=dict)

    def severity(self, code: str) -> Severity:
        """How bad a code is."""
        return Rule.registry[code].severity

    def rests_on_environment(self) -> bool:
        """Whether a finding could go away by installing something."""
        return any(Rule.registry[finding.code].environment for finding in self.findings)

    def lines(self) -> dict[tuple[str, int], str]:
        """The text of every line that the findings name."""
        self._texts = {source.file: source.text.splitlines() for source in self.sources}
        return {
            (span.file, span.line): self._line(span) for f in self.findings for span in _places(f)
        }

    def _line(self, span: Span) -> str:
        text = self._texts.get(span.file, [])
        return text[span.line - 1] if span.line <= len(text) else ""


def _places(finding: Finding) -> Iterator[Span]:
    yield finding.span
    for note in finding.notes:
        yield note.span


def check(path: Path, root: Path) -> Checked:
    """Everything the rules say of a spec, but for what its comments allow."""
    checked = Checked(name_of(path, root))
    found: list[Finding] = []
    try:
        written = document(path, root)
        checked.sources = written.sources
        found += _on_text(written.sources)
        _on_spec(_as_meant(written), checked, found)
    except SpecError as error:
        found += error.findings
        if not checked.sources:
            checked.sources = _alone(path, root)
            found += _on_text(checked.sources)
    unique = {(f.code, f.span, f.message): f for f in reversed(_without_echoes(found))}
    kept = apply(checked.sources, unique.values(), finished=checked.finished)
    checked.findings = tuple(sorted(kept, key=lambda f: (f.span, f.code, f.message)))
    return checked


def _without_echoes(found: Sequence[Finding]) -> list[Finding]:
    """Findings without those that say less of the same place.

    A wrong shape is told once, and not where the text already explains it.
    """
    told = {f.span for f in found if f.code.startswith("XC0") or f.code == "XC107"}
    kept = []
    for finding in found:
        if finding.code == "XC103":
            if finding.span in told:
                continue
            told.add(finding.span)
        kept.append(finding)
    return kept


def _alone(path: Path, root: Path) -> tuple[Source, ...]:
    """The spec without what it extends, when that is what can't be read."""
    try:
        return (read(path, root),)
    except SpecError:
        return ()  # said already


# ----------------------------------------------------------------------------------------------------- steps


def _on_text(sources: Iterable[Source]) -> Iterator[Finding]:
    for source in sources:
        for rule in _of(TextRule):
            yield from rule.check(source)


def _as_meant(written: Document) -> Document:
    """The document with every `3e-4` read as the number it was meant to be: it is told, and must hide nothing else."""
    tree = written.tree
    for source in written.sources:
        for scalar in source.scalars:
            meant = number_meant(scalar)
            if meant and tree.get(scalar.path) == scalar.value:
                tree = tree.replaced(scalar.path, float(meant))
    return replace(written, tree=tree)


def _on_spec(written: Document, checked: Checked, found: list[Finding]) -> None:
    experiment = resolve(written)
    for axis_rule in _of(AxisRule):
        found += axis_rule.check(written, experiment)
    swept, base = known_axes(written, experiment)
    space, unfit = explore(swept, base)
    found += unfit
    orders = (experiment, *(variant.experiment for variant in space.variants))
    circle = [finding for each in orders for finding in _circle(each)]
    found += circle
    found += misfits(swept, base, space)
    for at in _points(swept, base, space, found):
        found += _on_point(at)
    for sweep_rule in _of(SweepRule):
        found += sweep_rule.check(swept, base, space)
    checked.needs = tuple(dict.fromkeys(_needs(written, experiment, space)))
    for folder_rule in _of(FolderRule):
        found += folder_rule.check(experiment, space) if not (unfit or circle) else ()
    checked.unprofiled = _unprofiled(experiment)
    checked.finished = not unfit and not any(Rule.registry[each.code].hides for each in found)


def _unprofiled(experiment: Experiment) -> bool:
    """Whether a stage reads data, and nobody looked at it."""
    reads = any(identity(stage) is not None for stage in experiment.stages.values())
    return reads and facts_of(experiment) is None


def _circle(experiment: Experiment) -> tuple[Finding, ...]:
    """Stages that wait for each other. Nothing else in lint needs their order."""
    try:
        order(experiment)
    except SpecError as error:
        return error.findings
    return ()


_R = TypeVar("_R", bound=Rule)


def _of(base: type[_R]) -> list[_R]:
    return [rule() for rule in rules() if issubclass(rule, base)]


def _on_point(at: Variant) -> Iterator[Finding]:
    for spec_rule in _of(SpecRule):
        yield from spec_rule.check(at.experiment)
    for name, stage in at.experiment.stages.items():
        if name not in at.condition.skips:
            for stage_rule in _of(StageRule):
                yield from stage_rule.check(stage, at)


def _points(
    written: Document, base: Experiment, space: Space, found: list[Finding]
) -> Iterator[Variant]:
    """Every structural variant; and, for the first of each condition, telling values of the loops."""
    yield from space.variants
    places = list(_places_of(space.loops))
    for condition in conditions(base) if places else ():
        first = next((v for v in space.variants if v.condition == condition), None)
        for rows in places if first is not None else ():
            at = tuple(zip(space.loops, rows, strict=True))
            moved = [override for axis, row in at for override in axis.row(row)]
            if first is None or _stands(first, moved):
                continue
            if is_excluded(base, condition, (*first.rows, *at)):
                continue
            point = _moved(written, first, moved, found)
            if point is not None:
                yield point


def _stands(variant: Variant, moved: Iterable[Override]) -> bool:
    """Whether a variant already has these values: then it was looked at as it is."""
    tree = variant.experiment.tree
    return all(tree.get(spec_path(each.path)) == each.value for each in moved)


def _places_of(loops: Sequence[Axis]) -> Iterator[tuple[int, ...]]:
    """Rows of every loop: all combinations of a small grid; in a larger one loops move side by side.

    So a grid of any size costs no more than its longest axis.
    """
    rows = [_telling(axis) for axis in loops if axis.rows]
    if not rows or len(rows) < len(loops):
        return
    if math.prod(map(len, rows)) <= EVERY_POINT:
        yield from itertools.product(*rows)
        return
    for i in range(max(map(len, rows))):
        yield tuple(row[i % len(row)] for row in rows)


def _moved(
    written: Document, variant: Variant, moved: list[Override], found: list[Finding]
) -> Variant | None:
    try:
        experiment = resolve(written, (*variant.overrides(), *moved))
    except SpecError as error:
        found += error.findings
        return None
    return replace(variant, experiment=experiment)


def _telling(axis: Axis) -> list[int]:
    """Rows worth a look: all of a short axis; of a long one the ends and, for each type of value, the extremes."""
    count = len(axis.rows)
    if count <= EVERY_ROW:
        return list(range(count))
    chosen = {0, count - 1}
    for column in range(len(axis.paths)):
        by_type: dict[type, list[int]] = {}
        for index, row in enumerate(axis.rows):
            by_type.setdefault(type(row[column]), []).append(index)
        for indexes in by_type.values():
            cells = [axis.rows[index][column] for index in indexes]
            chosen |= {indexes[cells.index(min(cells))], indexes[cells.index(max(cells))]}
    return sorted(chosen)


# ------------------------------------------------------------------------------------------- what it rests on


def _needs(written: Document, base: Experiment, space: Space) -> Iterator[Need]:
    root = base.root
    for source in written.sources:
        yield "text", str(root / source.file)
    for experiment in (base, *(variant.experiment for variant in space.variants)):
        for stage in experiment.stages.values():
            for use in stage.every_use():
                yield from _code(use, root)
            for _, _, start in taken(stage.shape):
                if start.file:
                    yield "there", str(root / start.file)
            for use in stage.every_use():
                for each in named(use):
                    yield "found" if each.pattern else "there", str(root / each.name)
    yield from _known(base, space)
    folder = root / "generated" / base.name
    yield "text", str(folder / "expc.lock.json")
    if folder.is_dir():
        yield from (("text", str(file)) for file in sorted(folder.iterdir()) if file.is_file())


def _known(base: Experiment, space: Space) -> Iterator[Need]:
    """The facts, and the data that they are held against."""
    yield "text", str(facts_file(base))
    if facts_of(base) is None:
        return
    for experiment in (base, *(variant.experiment for variant in space.variants)):
        for stage in experiment.stages.values():
            if identity(stage) is not None:
                yield from (("stat", str(base.root / file)) for file in files(stage, base.root))


def _code(use: Use, root: Path) -> Iterator[Need]:
    """The file behind a component that did not come with this tool."""
    if use.component.own:
        module = use.component.target.split(":")[0]
        try:
            files = sources(module, root) or [find(module, root)]
        except NotFound:
            return
        yield from (("text", str(file)) for file in files)
    elif not use.component.params.__module__.startswith("expc."):
        declared = sys.modules[use.component.params.__module__]
        if declared.__file__:
            yield "text", declared.__file__


__all__ = ["Checked", "check"]
