"""From variants to files and runs. Loops stay loops: a grid of any size is planned in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expc import digest
from expc.experiment import Experiment
from expc.findings import Finding, SpecError
from expc.ir import Block, Flag, Loop, Module, Name, Plan, Program, StageRun
from expc.policy import backends, fingerprint, notify, policies
from expc.resolve import spec_path
from expc.source import KeyPath
from expc.sweep import (
    Axis,
    Space,
    Variant,
    axes,
    flag_name,
    labels,
    none_left,
    number,
    places,
    same,
    slug,
    too_many,
)

MAX_MODULES = 64


def plan(base: Experiment, space: Space) -> Plan:
    """The files and runs of an experiment. Raises `SpecError` when a sweep would fork into too many files."""
    modules = _modules(base, space)
    count = len(modules)
    if count > MAX_MODULES:
        raise SpecError(too_many(base, f"{count} files"))
    short = labels(axes(base.tree))
    blocks = tuple(block for _, block in _paired(base, space, modules, short))
    if not blocks:
        raise SpecError(none_left(base))
    runs = sum(block.runs for block in blocks)
    return Plan(
        experiment=base.name,
        spec=base.file,
        about=base.about,
        stages=tuple(order(base)),
        modules=tuple(modules.values()),
        blocks=blocks,
        axes=tuple(f"{count} {name}" for count, name in _factors(base, short)),
        seeds=tuple(base.sweep.seeds),
        runs=runs,
        excluded=math.prod(count for count, _ in _factors(base, short)) - runs,
        policies=policies(base, space),
        notify=notify(base),
        backends=backends(base),
        conduct=fingerprint(base, space),
    )


def paired(base: Experiment, space: Space) -> list[tuple[Variant, Block]]:
    """The blocks of a plan, each with the structural variant that it runs."""
    return list(_paired(base, space, _modules(base, space), labels(axes(base.tree))))


def order(experiment: Experiment) -> list[str]:
    """Stages, each after those it starts from; else as written. Raises `SpecError` on a circle."""
    done: list[str] = []
    waiting = list(experiment.stages)
    while waiting:
        ready = [
            name
            for name in waiting
            if all(
                parent in done or parent not in experiment.stages
                for parent in experiment.stages[name].parents
            )
        ]
        if not ready:
            raise SpecError(_circle(experiment, waiting))
        done += ready[:1]
        waiting.remove(ready[0])
    return done


def _circle(experiment: Experiment, waiting: Sequence[str]) -> Finding:
    trail = [waiting[0]]
    while True:
        parent = next(p for p in experiment.stages[trail[-1]].parents if p in waiting)
        if parent in trail:
            circle = [*trail[trail.index(parent) :], parent]
            break
        trail.append(parent)
    measures = experiment.tree.where.get(("stages", circle[0], "of"))
    slots = [("stages", circle[0], key) for key in ("init", "frozen")]
    starts = next((slot for slot in slots if experiment.is_written(slot)), slots[0])
    place = measures.value if measures is not None else experiment.key(*starts)
    return Finding(
        "XC202",
        f"stages wait for each other: {' -> '.join(f'`{name}`' for name in circle)}",
        place,
        why="none of them could ever start",
        help=f"let `{circle[0]}` measure a stage that is trained"
        if measures is not None
        else f"let `{circle[0]}` start from a file, or from a stage outside the circle",
    )


# ------------------------------------------------------------------------------------------------- modules


@dataclass(frozen=True)
class _Made:
    variant: Variant
    program: Program
    structure: str


def _modules(base: Experiment, space: Space) -> dict[tuple[str, str], Module]:
    """(stage, structure) -> file. Equal programs are one file."""
    modules: dict[tuple[str, str], Module] = {}
    files: set[str] = set()
    for stage in order(base):
        made: dict[str, _Made] = {}
        for variant in space.variants:
            program = variant.programs.get(stage)
            if program is not None:
                key = digest.structure(program)
                made.setdefault(key, _Made(variant, program, key))
        names = _file_labels(stage, list(made.values()))
        for key, one in made.items():
            label = names[key]
            file = f"{stage}_{label}.py" if label else f"{stage}.py"
            if file in files:
                file = f"{stage}_{label}_{key[:8]}.py"
            files.add(file)
            modules[stage, key] = Module(stage, file, label, one.program, key)
    return modules


def _file_labels(stage: str, made: list[_Made]) -> dict[str, str]:
    """A label that tells files of one stage apart: by component, then by swept value, then by condition."""
    if len(made) == 1:
        return {made[0].structure: ""}
    uses = {one.structure: _uses(stage, one.variant.experiment) for one in made}
    values = {one.structure: _swept(one.variant) for one in made}
    tries = [
        _telling({key: {path: name.split(":")[-1] for path, name in found.items()} for key, found in uses.items()}),
        _telling(values),
        {one.structure: one.variant.condition.name for one in made},
        {one.structure: one.structure[:8] for one in made},
    ]  # fmt: skip
    for labelled in tries:
        clean = {key: _identifier(label) for key, label in labelled.items()}
        if len(set(clean.values())) == len(clean) and all(clean.values()):
            return clean
    return tries[-1]


def _swept(variant: Variant) -> dict[str, str]:
    """The structural point of a variant: path -> value."""
    return {
        path: word
        for axis, row in variant.rows
        for path, word in zip(axis.paths, axis.words[row], strict=True)
    }


def _telling(found: Mapping[str, Mapping[Any, str]]) -> dict[str, str]:
    """For each key, its values at the first places that tell the keys apart."""
    places = dict.fromkeys(place for each in found.values() for place in each)
    labelled = dict.fromkeys(found, "")
    for place in places:
        longer = {
            key: "_".join([*filter(None, [labelled[key]]), *map(slug, _at(each, place))])
            for key, each in found.items()
        }
        if len(set(longer.values())) > len(set(labelled.values())):
            labelled = longer
    return labelled


def _at(values: Mapping[Any, str], place: object) -> list[str]:
    return [values[place]] if place in values else []


def _identifier(label: str) -> str:
    return "".join(char if char.isalnum() or char == "_" else "_" for char in label).lower()


def _uses(stage: str, experiment: Experiment) -> dict[KeyPath, str]:
    return {
        path: str(value)
        for path, value in experiment.tree.leaves(("stages", stage))
        if path[-1] == "use"
    }


# -------------------------------------------------------------------------------------------------- blocks


def _paired(
    base: Experiment,
    space: Space,
    modules: Mapping[tuple[str, str], Module],
    short: Mapping[str, str],
) -> Iterator[tuple[Variant, Block]]:
    for variant in space.variants:
        block = _block(base, space, variant, modules, short)
        if block.runs:
            yield variant, block


def _block(
    base: Experiment,
    space: Space,
    variant: Variant,
    modules: Mapping[tuple[str, str], Module],
    short: Mapping[str, str],
) -> Block:
    looped = {
        place: (short[path], [row[column] for row in axis.rows])
        for axis in space.loops
        for column, path in enumerate(axis.paths)
        for place in places(path, variant.experiment)
    }
    stages = []
    for stage in order(variant.experiment):
        if stage in variant.condition.skips:
            stages.append(
                StageRun(stage, "", (), (), f"condition {variant.condition.name} skips it")
            )
            continue
        program = variant.programs[stage]
        module = modules[stage, digest.structure(program)]
        parents = variant.experiment.stages[stage].parents
        stages.append(StageRun(stage, module.file, _flags(program, module, looped), parents))
    loops = tuple(
        Loop(
            tuple(short[path] for path in axis.paths),
            tuple(tuple(_checked(variant, axis, row)) for row in range(len(axis.rows))),
        )
        for axis in space.loops
    )
    unless = _unless(base, variant, space, short)
    seeds = base.sweep.seeds
    every = math.prod(len(loop.rows) for loop in loops)
    runs = (every - _excluded(loops, unless)) * len(seeds) if unless is not None else 0
    return Block(_label(variant, space, short), loops, tuple(stages), unless or (), runs)


def _checked(variant: Variant, axis: Axis, row: int) -> tuple[object, ...]:
    cells = zip(axis.paths, axis.rows[row], strict=True)
    return tuple(_held(variant, path, value) for path, value in cells)


def _held(variant: Variant, path: str, value: object) -> object:
    """A swept value as the field it sets holds it: `1` is `1.0` where a number with a point is wanted."""
    field = variant.experiment.tree.get(places(path, variant.experiment)[-1])
    whole = isinstance(field, float) and isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value  # type: ignore[arg-type]


def _flags(
    program: Program, module: Module, looped: Mapping[KeyPath, tuple[str, Sequence[object]]]
) -> tuple[tuple[str, object | Name], ...]:
    defaults = {flag.field: flag.default for flag in module.program.flags}
    given: list[tuple[str, object | Name]] = []
    for flag in program.flags:
        if flag.path in looped:
            name, values = looped[flag.path]
            given.append((_joined(flag, values), Name(name)))
        elif flag.default != defaults[flag.field]:
            given.append((_joined(flag, [flag.default]), flag.default))
    return tuple(given)


def _joined(flag: Flag, values: Iterable[object]) -> str:
    """A flag's name, with `=` where a value could be read as a flag: `--shift=-1e-05`."""
    firsts = (value[0] if isinstance(value, tuple) and value else value for value in values)
    return flag_name(flag) + ("=" if any(number(v).startswith("-") for v in firsts) else "")


def _label(variant: Variant, space: Space, short: Mapping[str, str]) -> tuple[str | Name, ...]:
    parts: list[str | Name] = [variant.condition.name] if variant.condition.name else []
    for axis, row in variant.rows:
        for path, word in zip(axis.paths, axis.words[row], strict=True):
            parts += [_comma(parts) + f"{short[path]}={word}"]
    for axis in space.loops:
        for path in axis.paths:
            parts += [_comma(parts) + f"{short[path]}=", Name(short[path])]
    return tuple(parts)


def _comma(parts: Sequence[object]) -> str:
    return "," if parts else ""


_Rule = tuple[tuple[str, object], ...]


def _unless(
    base: Experiment, variant: Variant, space: Space, short: Mapping[str, str]
) -> tuple[_Rule, ...] | None:
    """Exclusions that still depend on a loop; None when the whole variant is excluded."""
    fixed: dict[str, object] = {"condition": variant.condition.name}
    for axis, row in variant.rows:
        fixed.update(zip(axis.paths, axis.rows[row], strict=True))
    looped = {path: axis for axis in space.loops for path in axis.paths}
    tree = variant.experiment.tree
    left: list[_Rule] = []
    for excluded in base.sweep.exclude:
        held = {p: fixed.get(p, tree.get(spec_path(p))) for p in excluded if p not in looped}
        if any(same(held[path]) != same(excluded[path]) for path in held):
            continue
        rest = [(path, value) for path, value in excluded.items() if path in looped]
        if not rest:
            return None
        cells = [(path, cell) for path, value in rest for cell in _cells(looped[path], path, value)]
        if len(cells) == len(rest):
            left.append(tuple((short[path], _held(variant, path, cell)) for path, cell in cells))
    return tuple(left)


def _cells(axis: Axis, path: str, value: object) -> list[object]:
    """An excluded value as the axis writes it, if it is one of its values: `32.0` leaves out `32`."""
    column = axis.paths.index(path)
    return [row[column] for row in axis.rows if same(row[column]) == same(value)][:1]


def _excluded(loops: Sequence[Loop], unless: Sequence[Sequence[tuple[str, object]]]) -> int:
    if not unless:
        return 0
    count = 0
    for rows in itertools.product(*(loop.rows for loop in loops)):
        point = {
            name: value
            for loop, row in zip(loops, rows, strict=True)
            for name, value in zip(loop.names, row, strict=True)
        }
        count += any(all(point.get(name) == value for name, value in rule) for rule in unless)
    return count


def _factors(base: Experiment, short: Mapping[str, str]) -> list[tuple[int, str]]:
    """What the number of runs is the product of, and of what."""
    named = base.sweep.conditions
    factors = [(len(named), "conditions")] if named else []
    for axis in axes(base.tree):
        factors.append((len(axis.rows), " with ".join(short[path] for path in axis.paths)))
    seeds = len(base.sweep.seeds)
    return [*factors, (seeds, "seeds")] if seeds > 1 else factors
