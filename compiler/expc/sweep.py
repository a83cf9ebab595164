"""A spec's sweep as axes, and the structural variants it spans."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from expc import digest
from expc.experiment import Experiment
from expc.findings import Finding, Span, SpecError
from expc.ir import Flag, Program
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

    @cached_property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The rows as parts of names: different values have different words."""
        columns = [_told_apart([row[i] for row in self.rows]) for i in range(len(self.paths))]
        return tuple(zip(*columns, strict=True))

    def places(self, experiment: Experiment) -> tuple[KeyPath, ...]:
        """What the axis sets in a resolved spec."""
        return tuple(place for path in self.paths for place in places(path, experiment))

    def meets(self, experiment: Experiment, paths: Iterable[KeyPath]) -> bool:
        """Whether the axis sets one of these paths, or something above or below one."""
        mine = self.places(experiment)
        return any(one[: len(two)] == two[: len(one)] for one in paths for two in mine)

    def row(self, index: int) -> tuple[Override, ...]:
        """The overrides of one row."""
        cells = zip(self.paths, self.rows[index], self.spans[index], strict=True)
        return tuple(Override(path, value, span) for path, value, span in cells)


def places(path: str, experiment: Experiment) -> tuple[KeyPath, ...]:
    """What a swept path sets in a resolved spec. A shared part of the model stands in every stage that takes it."""
    at = spec_path(path)
    if at[0] != "model":
        return (at,)
    where = experiment.tree.where
    shared = [known for known in where if known[: len(at)] == at]
    taken = (
        (*stage.path, *at)
        for stage in experiment.stages.values()
        if any(where.get((*stage.path, *known)) == where[known] for known in shared)
    )
    return (at, *taken)


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
        grown = structural | {
            axis for axis in loops if _forks(axis, variants) or _is_mixed(axis, variants)
        }
        if grown == structural:
            if not (variants or findings):
                findings = [none_left(base)]
            found = Space(tuple(chosen), tuple(loops), tuple(variants))
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


def _forks(axis: Axis, variants: Iterable[Variant]) -> bool:
    """Whether a program depends on the axis."""
    return any(
        axis.meets(variant.experiment, program.structural)
        for variant in variants
        for program in variant.programs.values()
    )


def _is_mixed(axis: Axis, variants: Iterable[Variant]) -> bool:
    """Whether an argument of the user's own, of no declared type, is given several: a flag reads one."""
    for column, path in enumerate(axis.paths):
        for variant in variants:
            tree = variant.experiment.tree
            for place in places(path, variant.experiment):
                if _is_untyped(place, variant.experiment):
                    kinds = {type(row[column]) for row in axis.rows} | {type(tree.get(place))}
                    if len(kinds) > 1:
                        return True
    return False


def _is_untyped(place: KeyPath, experiment: Experiment) -> bool:
    for stage in experiment.stages.values():
        for use in stage.every_use():
            if use.component.own and use.path == place[:-1]:
                declared = use.component.params.model_fields.get(str(place[-1]))
                return declared is None or declared.annotation not in _TYPES
    return False


_TYPES = tuple(each for kind in (int, float, str, bool) for each in (kind, kind | None))


def _variants(
    document: Document, base: Experiment, chosen: Sequence[Axis], loops: Sequence[Axis]
) -> tuple[list[Variant], list[Finding]]:
    findings: list[Finding] = []
    found = []
    for condition in conditions(base):
        points = itertools.product(*(range(len(axis.rows)) for axis in chosen))
        for rows in itertools.islice(points, MAX_VARIANTS):
            at = tuple(zip(chosen, rows, strict=True))
            if is_excluded(base, condition, at):
                continue
            try:
                experiment = _resolved(document, base, _overrides(condition, at), loops)
            except SpecError as error:
                findings += error.findings
                continue
            swept = frozenset(place for axis in loops for place in axis.places(experiment))
            programs, misfits = _lowered(experiment, condition.skips, swept)
            findings += misfits
            found.append(Variant(condition, at, experiment, programs))
    count = math.prod(len(axis.rows) for axis in chosen)
    if count > MAX_VARIANTS:
        findings.append(too_many(base, f"{count:,} structural points"))
    return found, findings


def is_excluded(base: Experiment, condition: Condition, rows: Iterable[tuple[Axis, int]]) -> bool:
    """Whether an exclusion leaves out a point, whatever stands on the axes that it does not name."""
    fixed: dict[str, Any] = {"condition": condition.name}
    for axis, row in rows:
        fixed.update(zip(axis.paths, axis.rows[row], strict=True))
    return any(
        all(path in fixed and same(fixed[path]) == same(value) for path, value in rule.items())
        for rule in base.sweep.exclude
    )


def _resolved(
    document: Document, base: Experiment, moved: Sequence[Override], loops: Sequence[Axis]
) -> Experiment:
    """The spec at a structural point.

    Where nothing there writes what a loop sets, the loop's first value stands: its flag needs a default.
    """
    firsts = [override for axis in loops if axis.rows for override in axis.row(0)]
    lacking = _unwritten(firsts, base)
    experiment = resolve(document, (*moved, *lacking)) if moved or lacking else base
    lost = _unwritten(firsts, experiment)  # a condition or a structural value took their place
    return resolve(document, (*moved, *lacking, *lost)) if lost else experiment


def _unwritten(overrides: Iterable[Override], experiment: Experiment) -> list[Override]:
    return [each for each in overrides if not experiment.is_written(spec_path(each.path))]


def too_many(base: Experiment, what: str) -> Finding:
    """A sweep that forks the code more often than a person could review."""
    return Finding(
        "XC503",
        f"this sweep forks the code into {what}",
        base.key("sweep"),
        why="so many can't be read or reviewed",
        help="sweep fewer structural choices (`use`, columns, clocks) at a time",
    )


def none_left(base: Experiment) -> Finding:
    """Exclusions that leave nothing to run."""
    return Finding(
        "XC506",
        "the exclusions leave out every run",
        base.key("sweep", "exclude"),
        why="nothing would run",
        help="name the combinations that are not wanted, and no others",
    )


def _overrides(condition: Condition, rows: Iterable[tuple[Axis, int]]) -> tuple[Override, ...]:
    cells = [override for axis, index in rows for override in axis.row(index)]
    return (*condition.overrides, *cells)


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
            if (times[name] > 1 or _is_taken(name)) and depth[path] < len(keys[path])
        ]
        if not unclear:
            return short
        depth.update({path: depth[path] + 1 for path in unclear})


_SHELL_NAMES = frozenset({"seed", "seeds", "row", "experiment", "folder"})
"""Variables that a sweep script has already."""


def _is_taken(name: str) -> bool:
    """Whether a variable means something already: to the script, or, in capitals, to bash itself."""
    return name in _SHELL_NAMES or (len(name) > 1 and name.isupper())


def _variable(keys: Sequence[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(keys))
    return f"_{name}" if not name or name[0].isdigit() else name


MAX_WORD = 60
"""Characters of one value in the name of a folder, which can't be longer than 255."""


def _told_apart(values: Sequence[object]) -> list[str]:
    """A word for each value: short where that tells it from the others, else as long as it takes."""
    words = [slug(value) for value in values]
    for longer in (_spelled, _hashed):
        meant: dict[str, set[str]] = {}
        for word, value in zip(words, values, strict=True):
            meant.setdefault(word, set()).add(same(value))
        words = [
            word if len(meant[word]) == 1 and len(word) <= MAX_WORD else longer(value)
            for word, value in zip(words, values, strict=True)
        ]
    return words


def _spelled(value: object) -> str:
    """A map by its keys and values, `conv_net-channels-8`; all else as short as ever."""
    if not isinstance(value, dict):
        return slug(value)
    rest = (f"{key}-{_spelled(item)}" for key, item in value.items() if key != "use")
    return "-".join([*([slug(value["use"])] if "use" in value else []), *rest])


def _hashed(value: object) -> str:
    return f"{slug(value)[:40]}-{digest.text(same(value))[:6]}"


def same(value: Any) -> str:
    """Equal for values that make equal runs: 1 and 1.0 do, 1 and `true` do not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(map(same, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{key}:{same(item)}' for key, item in value.items()))}}}"
    return json.dumps(value)


def slug(value: object) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, dict):
        return slug(value.get("use", "-".join(str(item) for item in value.values())))
    if isinstance(value, list | tuple):
        return "-".join(slug(item) for item in value)
    if isinstance(value, int | float):
        return number(value)
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", number(value)).strip("-") or "none"


def number(value: object) -> str:
    """A scalar as flags and shell print it: shortest text that reads back as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return "none" if value is None else str(value)


def flag_name(flag: Flag) -> str:
    """The command-line flag of a field."""
    return "--" + flag.field.replace("_", "-")
