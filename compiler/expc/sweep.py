"""A spec's sweep as axes, and the structural variants it spans."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expc.experiment import Experiment
from expc.findings import Finding, Span, SpecError
from expc.ir import Program
from expc.lower import lower
from expc.resolve import Document, Override, resolve, spec_path
from expc.source import KeyPath
from expc.tree import Tree

MAX_VARIANTS = 256

_SAFE = re.compile(r"[A-Za-z0-9._+-]+$")


@dataclass(frozen=True, eq=False)
class Axis:
    """Paths that vary together (one, or several zipped), and their rows of values; values may be lists and maps."""

    kind: str
    paths: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    spans: tuple[tuple[Span, ...], ...]

    @property
    def where(self) -> tuple[KeyPath, ...]:
        """The places the axis sets."""
        return tuple(spec_path(path) for path in self.paths)

    def row(self, index: int) -> tuple[Override, ...]:
        """The overrides of one row."""
        cells = zip(self.paths, self.rows[index], self.spans[index], strict=True)
        return tuple(Override(path, value, span) for path, value, span in cells)


@dataclass(frozen=True)
class Condition:
    """A named set of overrides, and the stages it leaves out."""

    name: str
    overrides: tuple[Override, ...] = ()
    skips: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Variant:
    """One structural point: its condition, its row on every structural axis, what it resolves and lowers to."""

    condition: Condition
    rows: tuple[tuple[Axis, int], ...]
    experiment: Experiment
    programs: Mapping[str, Program]

    def overrides(self) -> tuple[Override, ...]:
        """What makes this variant."""
        return _overrides(self.condition, self.rows)


@dataclass(frozen=True)
class Space:
    """The sweep: axes that change code (they span `variants`) and axes that are flags (they are loops)."""

    structural: tuple[Axis, ...]
    loops: tuple[Axis, ...]
    variants: tuple[Variant, ...]
    swept: frozenset[KeyPath]


def axes(tree: Tree) -> list[Axis]:
    """The grid's axes and the zipped one, in the spec's order."""
    found = []
    for path, values in (tree.get(("sweep", "grid")) or {}).items():
        spans = tuple((_span(tree, ("sweep", "grid", path, i)),) for i in range(len(values)))
        found.append(Axis("grid", (path,), tuple((value,) for value in values), spans))
    zipped = tree.get(("sweep", "zip")) or {}
    if zipped:
        length = min(len(values) for values in zipped.values())
        rows = tuple(tuple(values[i] for values in zipped.values()) for i in range(length))
        places = tuple(
            tuple(_span(tree, ("sweep", "zip", path, i)) for path in zipped) for i in range(length)
        )
        found.append(Axis("zip", tuple(zipped), rows, places))
    return found


def _span(tree: Tree, path: KeyPath) -> Span:
    return tree.at(path).value


def conditions(experiment: Experiment) -> list[Condition]:
    """The sweep's conditions; one without a name when there are none."""
    found = []
    for name, given in experiment.sweep.conditions.items():
        overrides = []
        skips = set()
        for path, value in given.items():
            if path in experiment.stages and value == "skip":
                skips.add(path)
                continue
            span = experiment.tree.at(("sweep", "conditions", name, path)).key
            overrides.append(Override(path, value, span))
        found.append(Condition(name, tuple(overrides), frozenset(skips)))
    return found or [Condition("")]


def space(document: Document, base: Experiment) -> Space:
    """The sweep of a spec. Raises `SpecError` with every misfit of every variant."""
    found, findings = explore(document, base)
    if findings:
        raise SpecError(*findings)
    return found


def explore(document: Document, base: Experiment) -> tuple[Space, list[Finding]]:
    """Split the axes into structural ones and loops, lower every structural variant, and tell what did not fit.

    An axis is structural when a lowering read its value. That can be seen only by lowering, and a variant may read what
    the base does not, so the split is found by going on until it no longer changes.
    """
    every = axes(document.tree)
    structural = {axis for axis in every if not _is_loop(axis)}
    while True:
        chosen = [axis for axis in every if axis in structural]
        loops = [axis for axis in every if axis not in structural]
        variants, findings = _variants(document, base, chosen, loops)
        read = frozenset().union(
            *(program.structural for variant in variants for program in variant.programs.values())
        )
        grown = structural | {axis for axis in loops if _touches(axis, read)}
        if grown == structural:
            swept = frozenset(path for axis in loops for path in axis.where)
            found = Space(tuple(chosen), tuple(loops), tuple(variants), swept)
            return found, list(dict.fromkeys(findings))
        structural = grown


def _is_loop(axis: Axis) -> bool:
    """Whether a shell loop can carry every value."""
    named = any(path.endswith(".use") for path in axis.paths)
    return not named and all(_is_word(value) for row in axis.rows for value in row)


def _is_word(value: object) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and bool(_SAFE.match(value)))


def _touches(axis: Axis, read: frozenset[KeyPath]) -> bool:
    return any(
        path[: len(seen)] == seen or seen[: len(path)] == path
        for path in axis.where
        for seen in read
    )


def _variants(
    document: Document, base: Experiment, chosen: Sequence[Axis], loops: Sequence[Axis]
) -> tuple[list[Variant], list[Finding]]:
    swept = frozenset(path for axis in loops for path in axis.where)
    unwritten = _first_rows(loops, base)
    findings: list[Finding] = []
    found = []
    for condition in conditions(base):
        points = itertools.product(*(range(len(axis.rows)) for axis in chosen))
        for rows in itertools.islice(points, MAX_VARIANTS):
            at = tuple(zip(chosen, rows, strict=True))
            moved = (*unwritten, *_overrides(condition, at))
            try:
                experiment = resolve(document, moved) if moved else base
            except SpecError as error:
                findings += error.findings
                continue
            programs, misfits = _lowered(experiment, condition.skips, swept)
            findings += misfits
            found.append(Variant(condition, at, experiment, programs))
    count = math.prod(len(axis.rows) for axis in chosen)
    if count > MAX_VARIANTS:
        findings.append(too_many(base, f"{count:,} structural points"))
    return found, findings


def too_many(base: Experiment, what: str) -> Finding:
    """A sweep that forks the code more often than a person could review."""
    return Finding(
        "XC503",
        f"this sweep forks the code into {what}",
        base.key("sweep"),
        why="so many can't be read or reviewed",
        help="sweep fewer structural choices (`use`, columns, clocks) at a time",
    )


def _overrides(condition: Condition, rows: Iterable[tuple[Axis, int]]) -> tuple[Override, ...]:
    cells = [override for axis, index in rows for override in axis.row(index)]
    return (*condition.overrides, *cells)


def _first_rows(loops: Iterable[Axis], base: Experiment) -> tuple[Override, ...]:
    """A loop's first value, where the spec itself wrote none: the flag needs a default."""
    return tuple(
        override
        for axis in loops
        if axis.rows
        for override in axis.row(0)
        if not base.is_written(spec_path(override.path))
    )


def _lowered(
    experiment: Experiment, skips: frozenset[str], swept: frozenset[KeyPath]
) -> tuple[dict[str, Program], list[Finding]]:
    programs: dict[str, Program] = {}
    findings: list[Finding] = []
    for name, stage in experiment.stages.items():
        if name not in skips:
            programs[name], misfits = lower(experiment, stage, swept)
            findings += misfits
    return programs, findings


def labels(every: Sequence[Axis]) -> dict[str, str]:
    """A short name for each swept path, as runs and shell variables carry it: its last telling keys."""
    paths = list(dict.fromkeys(path for axis in every for path in axis.paths))
    keys = {path: [key for key in path.split(".") if key != "use"] for path in paths}
    depth = dict.fromkeys(paths, 1)
    while True:
        short = {path: _variable(parts[-depth[path] :]) for path, parts in keys.items()}
        times = Counter(short.values())
        unclear = [
            path
            for path, name in short.items()
            if (times[name] > 1 or name in _SHELL_NAMES) and depth[path] < len(keys[path])
        ]
        if not unclear:
            return short
        depth.update({path: depth[path] + 1 for path in unclear})


_SHELL_NAMES = frozenset({"seed", "seeds", "row", "experiment", "folder"})
"""Variables that a sweep script has already."""


def _variable(keys: Sequence[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(keys))
    return f"_{name}" if not name or name[0].isdigit() else name


def slug(value: object) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, dict):
        return slug(value.get("use", "-".join(str(item) for item in value.values())))
    if isinstance(value, list | tuple):
        return "-".join(slug(item) for item in value)
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", number(value)).strip("-") or "none"


def number(value: object) -> str:
    """A scalar as flags and shell print it: shortest text that reads back as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return "none" if value is None else str(value)
