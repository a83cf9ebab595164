"""XC5: what varies between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from expc.experiment import Experiment
from expc.findings import Edit, Finding, Note, Span, listed, suggest
from expc.lint.core import AxisRule, SweepRule, ToldRule
from expc.resolve import Document, slots_of, spec_path
from expc.source import KeyPath
from expc.sweep import Axis, Space, Variant, axes, same


class UnknownAxis(AxisRule):
    """A sweep sets a path that the spec does not have.

    Every run of the axis would be the same run under another name.

    ## Bad
    ```yaml
    sweep:
      grid:
        read.optim.rate: [1.0e-3, 3.0e-3]
    ```

    ## Good
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
    ```
    """

    code, name, fixable = "XC501", "unknown-axis", False

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        for where, path in _unknown(document, experiment):
            known = [_dotted(each) for each, _ in experiment.tree.leaves(("stages",))]
            known += [_dotted(each) for each, _ in experiment.tree.leaves(("model",))]
            hint = suggest(path, known)
            span = document.tree.at(where).key
            top = path.partition(".")[0]
            stages = f"a path starts with a stage ({listed(experiment.stages)}) or `model`"
            if _of_runs(experiment, path):
                yield self._carried_out(path, span)
                continue
            yield self.finding(
                f"`{path}` can't be swept"
                if path in document.tree.data
                else f"the spec has no `{path}`",
                span,
                why="the sweep would change nothing",
                help=hint
                or (stages if top not in experiment.stages else f"see the keys of `{top}`"),
                fix=(Edit(span, hint.split("`")[1], safe=False),) if hint else (),
            )

    def _carried_out(self, path: str, span: Span) -> Finding:
        return self.finding(
            f"`{path}` can't be swept",
            span,
            why="how runs are carried out is no part of what they are: points of the sweep would be the same runs",
            help="set it once, under `run`",
        )


def _of_runs(experiment: Experiment, path: str) -> bool:
    """Whether a path is of how runs are carried out: of one stage's, or of all."""
    first, _, rest = path.partition(".")
    own = first in experiment.stages and rest.partition(".")[0] == "run"
    return own or (first == "run" and first not in experiment.stages)


def _dotted(path: KeyPath) -> str:
    return ".".join(str(key) for key in (path[1:] if path[0] == "stages" else path))


def _written_paths(experiment: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Every path that the sweep sets, and where it stands."""
    sweep = experiment.sweep
    for key, given in (("grid", sweep.grid), ("zip", sweep.zip)):
        for path in given:
            yield ("sweep", key, path), path
    for name, overrides in sweep.conditions.items():
        for path, value in overrides.items():
            if not (path in experiment.stages and value == "skip"):
                yield ("sweep", "conditions", name, path), path


def _unknown(document: Document, experiment: Experiment) -> Iterator[tuple[KeyPath, str]]:
    """Paths of the sweep that lead nowhere. A path below a component that the sweep itself picks is left to it."""
    every = list(_written_paths(experiment))
    picked = {(path, spec_path(path.removesuffix(".use"))) for _, path in every}
    for where, path in every:
        target = spec_path(path)
        if _of_runs(experiment, path):
            yield where, path
            continue
        above = {target[:n] for n in range(1, len(target))}
        if target in experiment.tree.where or any(
            other != path and place in above for other, place in picked
        ):
            continue
        depth = next(
            n for n in range(1, len(target) + 1) if target[:n] not in experiment.tree.where
        )
        owner = experiment.tree.get(target[: depth - 1])
        if owner is None:
            continue  # below something that is off: resolving says what it needs
        if depth == len(target) and _is_open(experiment, target[:-1]):
            continue
        if _is_brought(experiment, target):
            continue
        yield where, path


def _is_brought(experiment: Experiment, path: KeyPath) -> bool:
    """Whether a path leads into a map where components add entries: those of another component may be meant."""
    stage = experiment.stages.get(str(path[1])) if len(path) > 3 else None
    slot = slots_of(stage.kind.shape).get(str(path[2])) if stage is not None else None
    return slot is not None and slot.brought


def _is_open(experiment: Experiment, path: KeyPath) -> bool:
    """Whether a map takes keys of the author's choosing: a named map, or a component with open arguments."""
    if path == ("model",):
        return True
    stage = experiment.stages.get(str(path[1])) if len(path) > 2 else None
    if stage is None:
        return False
    for use in stage.every_use():
        if use.path == path:
            return use.params.model_config.get("extra") == "allow"
    if path[2:] and path[2] in stage.maps and len(path) == 3:
        return True
    node: Any = stage.shape
    for key in path[2:]:
        node = node.get(key) if isinstance(node, dict) else getattr(node, str(key), None)
    return isinstance(node, dict) and not isinstance(node, BaseModel)


def known_axes(document: Document, experiment: Experiment) -> tuple[Document, Experiment]:
    """The spec without the axes that lead nowhere or hold nothing, so that all else can still be checked."""
    lost = {where for where, _ in _unknown(document, experiment)}
    sweep = experiment.sweep
    grid = {
        path: values
        for path, values in sweep.grid.items()
        if values and ("sweep", "grid", path) not in lost
    }
    zipped = {
        path: values
        for path, values in sweep.zip.items()
        if values and ("sweep", "zip", path) not in lost
    }
    conditions = {
        name: {
            path: value
            for path, value in overrides.items()
            if ("sweep", "conditions", name, path) not in lost
        }
        for name, overrides in sweep.conditions.items()
    }
    left = {"grid": grid, "zip": zipped, "conditions": conditions}
    if left == {"grid": sweep.grid, "zip": sweep.zip, "conditions": sweep.conditions}:
        return document, experiment
    data = {**(document.tree.get(("sweep",)) or {}), **left}
    trees = [each.tree.replaced(("sweep",), data) for each in (document, experiment)]
    return (
        replace(document, tree=trees[0]),
        replace(experiment, tree=trees[1], sweep=sweep.model_copy(update=left)),
    )


class DeadAxis(SweepRule):
    """An axis changes no program and no value: its runs are equal.

    Five conditions of one study differed in knobs whose gate was off, and cost a GPU day each.

    ## Bad
    ```yaml
    sweep:
      grid:
        read.until.patience: [2, 4]
    ```

    ## Good
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
    ```
    """

    code, name = "XC502", "dead-axis"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        seen = [(variant.experiment, _seen(variant)) for variant in space.variants]
        for axis in (*space.loops, *space.structural):
            if seen and len(axis.rows) > 1 and not any(axis.meets(*each) for each in seen):
                places = [document.tree.at(("sweep", axis.kind, path)).key for path in axis.paths]
                named = " and ".join(f"`{path}`" for path in axis.paths)
                yield self.finding(
                    f"sweeping {named} changes nothing",
                    places[0],
                    why=f"its {len(axis.rows)} values give equal runs under different names",
                    help="turn on what it belongs to, or leave the axis out",
                )
        idle = {v.condition.name: left for v in space.variants if (left := _left_out(v))}
        for condition, left in idle.items():
            waits = [f"`{stage}` starts from `{on}`" for stage, on in left.items() if on]
            first = next((stage for stage, on in left.items() if on), "")
            yield self.finding(
                f"condition `{condition}` runs nothing",
                document.tree.at(("sweep", "conditions", condition)).key,
                why="; ".join([f"it skips {listed(s for s in left if not left[s])}", *waits]),
                help=f"let `{first}` start afresh, `{first}.init: {{}}`, or leave the condition out"
                if first
                else "leave the condition out",
            )


def _left_out(variant: Variant) -> dict[str, str]:
    """Stage -> the skipped one that it starts from, "" for one that is skipped itself; empty if any stage runs."""
    stages = variant.experiment.stages
    left = {name: "" for name in stages if name in variant.condition.skips}
    for _ in stages:
        for name, stage in stages.items():
            on = next((parent for parent in stage.parents if parent in left), "")
            if on and name not in left:
                left[name] = on
    return left if len(left) == len(stages) else {}


def _seen(variant: Variant) -> set[KeyPath]:
    """What the lowerings looked at, or made a flag of."""
    programs = variant.programs.values()
    return {path for p in programs for path in (*p.structural, *(flag.path for flag in p.flags))}


class TooManyFiles(ToldRule):
    """The sweep forks the code into more files than a person could review.

    Axes of numbers are loops and cost nothing; axes of structure (`use`, columns, clocks) give each point a module of
    its own.

    ## Bad
    ```yaml
    sweep:
      grid:
        read.model.backbone.channels: [[1], [2], [3], [4], [5], [6], [7], [8], [9], [10], [11], [12], [13], [14], [15], [16], [17]]
        read.loss.digit.use: [cross_entropy, gce]
        read.optim.use: [adam, adamw, sgd]
        read.schedule.use: [constant, cosine, linear]
    schedule: {use: cosine}
    ```

    ## Good
    ```yaml
    sweep:
      grid:
        read.loss.digit.use: [cross_entropy, gce]
        read.optim.use: [adam, adamw, sgd]
    ```
    """

    code, name = "XC503", "too-many-files"


def _lists(experiment: Experiment) -> Iterator[tuple[KeyPath, str, Sequence[Any]]]:
    sweep = experiment.sweep
    for path, values in sweep.grid.items():
        yield ("sweep", "grid", path), path, values
    for path, values in sweep.zip.items():
        yield ("sweep", "zip", path), path, values
    if experiment.is_written(("sweep", "seeds")):
        yield ("sweep", "seeds"), "seeds", sweep.seeds


class RepeatedValues(AxisRule):
    """A value, a seed or a condition stands in the sweep twice.

    The same run would count as two in every mean and every error bar.

    ## Bad
    ```yaml
    sweep:
      seeds: [0, 1, 1]
    ```

    ## Good
    ```yaml
    sweep:
      seeds: [0, 1]
    ```
    """

    code, name, fixable = "XC505", "repeated-values", True

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        for where, label, values in _lists(experiment):
            if where[1] != "zip":
                yield from self._repeated(document, where, label, values)
        yield from self._rows(document, experiment)
        yield from self._conditions(document, experiment)

    def _repeated(
        self, document: Document, where: KeyPath, label: str, values: Sequence[Any]
    ) -> Iterator[Finding]:
        first: dict[str, int] = {}
        for index, value in enumerate(values):
            other = first.setdefault(same(value), index)
            if other != index:
                span = document.tree.at((*where, index)).value
                before = document.tree.at((*where, index - 1)).value
                yield self.finding(
                    f"`{label}` holds {json.dumps(value)} twice",
                    span,
                    why="the same run would count as two in every mean",
                    help="keep one",
                    notes=(Note(document.tree.at((*where, other)).value, "the first"),),
                    fix=_without(before, span),
                )

    def _rows(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        first: dict[str, int] = {}
        zipped = experiment.sweep.zip
        for index, row in enumerate(zip(*zipped.values(), strict=False)):
            other = first.setdefault(same(row), index)
            if other != index:
                where = ("sweep", "zip", next(iter(zipped)), index)
                yield self.finding(
                    f"rows {other + 1} and {index + 1} of `zip` are equal",
                    document.tree.at(where).value,
                    why="the same run would count as two in every mean",
                    help="keep one",
                )

    def _conditions(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        first: dict[str, str] = {}
        for name, overrides in experiment.sweep.conditions.items():
            other = first.setdefault(same(overrides), name)
            if other != name:
                yield self.finding(
                    f"conditions `{other}` and `{name}` are equal",
                    document.tree.at(("sweep", "conditions", name)).key,
                    why="the same run would stand under two names",
                    help="keep one, or let them differ",
                )


def _without(before: Span, span: Span) -> tuple[Edit, ...]:
    """Take an entry out of a list, with what stands between it and the one before."""
    if not span.start < span.end or before.end > span.start:
        return ()
    gap = Span(
        span.file,
        before.end_line,
        before.end_col,
        span.end_line,
        span.end_col,
        before.end,
        span.end,
    )
    return (Edit(gap, ""),)


class ExcludeMatchesNothing(AxisRule):
    """An exclusion matches no point of the sweep, or every one.

    The runs that it was meant to spare are run all the same, or none is.

    ## Bad
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
      exclude:
        - {read.optim.lr: 1.0e-2}
    ```

    ## Good
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
      exclude:
        - {read.optim.lr: 1.0e-3}
    ```
    """

    code, name = "XC506", "exclude-matches-nothing"

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        every = axes(document.tree)
        for index, excluded in enumerate(experiment.sweep.exclude):
            where = ("sweep", "exclude", index)
            if not excluded:
                yield self._told(document, where, "an empty exclusion leaves out every run", "")
            for path, value in excluded.items():
                problem = _no_match(path, value, excluded, every, experiment)
                if problem:
                    yield self._told(document, (*where, path), *problem)
                    break

    def _told(self, document: Document, where: KeyPath, message: str, help: str) -> Finding:
        return self.finding(
            message,
            document.tree.at(where).key,
            why="what it was meant to spare is run all the same" if help else "nothing would run",
            help=help or "name an axis and a value",
        )


def _no_match(
    path: str,
    value: Any,
    excluded: Mapping[str, Any],
    every: Iterable[Axis],
    experiment: Experiment,
) -> tuple[str, str] | None:
    if path == "condition":
        names = experiment.sweep.conditions
        if isinstance(value, str) and value in names:
            return None
        hint = suggest(str(value), names)
        return f"there is no condition `{value}` to exclude", hint or f"conditions: {listed(names)}"
    axis = next((axis for axis in every if path in axis.paths), None)
    if axis is None:
        paths = [each for axis in every for each in axis.paths]
        hint = suggest(path, paths)
        return f"`{path}` is not swept", hint or f"axes: {listed(paths)}"
    together = {p: v for p, v in excluded.items() if p in axis.paths}
    for row in axis.rows:
        cells = dict(zip(axis.paths, row, strict=True))
        if all(same(cells[p]) == same(v) for p, v in together.items()):
            return None
    values = listed(dict.fromkeys(json.dumps(row[axis.paths.index(path)]) for row in axis.rows))
    return f"`{path}` never is {json.dumps(value)}", f"its values are {values}"


class ZipLengthsDiffer(AxisRule):
    """The lists of a `zip` have different lengths.

    Values are taken side by side; those left over would be dropped in silence.

    ## Bad
    ```yaml
    sweep:
      zip:
        read.optim.lr: [1.0e-3, 3.0e-3]
        read.data.batch: [32, 64, 128]
    ```

    ## Good
    ```yaml
    sweep:
      zip:
        read.optim.lr: [1.0e-3, 3.0e-3]
        read.data.batch: [32, 64]
    ```
    """

    code, name = "XC507", "zip-lengths-differ"

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        lengths = {path: len(values) for path, values in experiment.sweep.zip.items()}
        if len(set(lengths.values())) > 1:
            shortest = min(lengths, key=lambda path: lengths[path])
            longest = max(lengths, key=lambda path: lengths[path])
            yield self.finding(
                f"`{shortest}` has {lengths[shortest]} values, `{longest}` has {lengths[longest]}",
                document.tree.at(("sweep", "zip", shortest)).key,
                why=f"{lengths[longest] - lengths[shortest]} would be dropped in silence",
                help="give both lists one length, or use `grid`",
                notes=(Note(document.tree.at(("sweep", "zip", longest)).key, f"`{longest}`"),),
            )


class AxisTwice(AxisRule):
    """Two parts of the sweep set the same path: the later one wins, and the other does nothing.

    Axes come after conditions, `zip` after `grid`, and a path after those above it in the file.

    ## Bad
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
      conditions:
        slow: {read.optim.lr: 1.0e-4}
        wide: {read.model.backbone.channels: [32, 64]}
    ```

    ## Good
    ```yaml
    sweep:
      grid:
        read.optim.lr: [1.0e-3, 3.0e-3]
      conditions:
        slow: {read.data.batch: 32}
        wide: {read.model.backbone.channels: [32, 64]}
    ```
    """

    code, name = "XC508", "axis-twice"

    def check(self, document: Document, experiment: Experiment) -> Iterator[Finding]:
        every = list(_written_paths(experiment))
        order = [each for each in every if each[0][1] == "conditions"]
        order += [each for each in every if each[0][1] != "conditions"]
        for number, (where, path) in enumerate(order):
            for later, other in order[number + 1 :]:
                if _lost(where, path, later, other):
                    place = document.tree.at(later).key
                    yield self.finding(
                        f"`{path}` is set again by {'/'.join(map(str, later[1:-1]))}, which wins",
                        document.tree.at(where).key,
                        why="the value here would do nothing",
                        help="set it in one place",
                        notes=(Note(place, f"`{other}` is set here too"),),
                    )


def _lost(where: KeyPath, path: str, later: KeyPath, other: str) -> bool:
    """Whether a later setting takes an earlier one's place: at the same path, or above it."""
    if where[1] == "conditions" and later[1] == "conditions" and where[2] != later[2]:
        return False
    return path == other or path.startswith(f"{other}.")
