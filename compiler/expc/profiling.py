"""Facts of a spec's data: what a child process with torch is asked, and what its answer says. Nothing here imports torch."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expc import digest
from expc.build import Compiled
from expc.child import ChildFailed, ask
from expc.components.data import COLUMN_PORTS, columns_of, groups_of
from expc.experiment import Experiment, Stage
from expc.facts import (
    TESTS,
    VERSION,
    Column,
    Facts,
    File,
    Floor,
    Identity,
    Split,
    StageFacts,
    made,
    place,
    text_of,
)
from expc.identity import files, hashed, identity
from expc.ir import Program
from expc.lint.facts import figures, params_of
from expc.lint.readings import Edge
from expc.resolve import resolve
from expc.sweep import Axis, Variant

POINTS = 16
"""Values of an axis over the data that are profiled; of a longer one, the first."""


class NotProfiled(Exception):
    """The data could not be read. `foreseen` is False where the child broke down, which says nothing of the data."""

    def __init__(self, message: str, *, foreseen: bool) -> None:
        super().__init__(message)
        self.foreseen = foreseen


@dataclass
class Job:
    """A stage at one point of a sweep over its data, with every variant of its program that reads that data."""

    stage: str
    data: Identity
    source: str
    files: list[File]
    columns: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    groups: tuple[str, ...] = ()
    programs: list[dict[str, Any]] = field(default_factory=list)
    floors: list[list[Floor]] = field(default_factory=list)

    def asked(self) -> dict[str, Any]:
        """What the child is told."""
        return {
            "stage": self.stage,
            "source": self.source,
            "files": bool(self.files),
            "columns": self.columns,
            "inputs": self.inputs,
            "groups": self.groups,
            "programs": self.programs,
        }


def profile(made: Compiled, texts: Mapping[str, str]) -> Facts:
    """Read the data of every stage that reads some; `texts` are the generated modules. Raises `NotProfiled`."""
    found = jobs(made, texts)
    if not found:
        raise NotProfiled("no stage of it reads data: there is nothing to profile", foreseen=True)
    answers = _asked(found, made.experiment)
    stages = tuple(_facts(job, told) for job, told in zip(found, answers, strict=True))
    return Facts(VERSION, TESTS, stages)


def write(facts: Facts, spec: Path) -> bool:
    """Keep facts beside their spec, whole or not at all; whether the file changed."""
    path, text = place(spec), text_of(facts)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return True


# ------------------------------------------------------------------------------------------------------ jobs


def jobs(made: Compiled, texts: Mapping[str, str]) -> list[Job]:
    """What is to be read, each data of each stage once. Raises `NotProfiled` for a file that is not there."""
    modules = {(each.stage, each.digest): each.file for each in made.plan.modules}
    found: dict[tuple[str, str], Job] = {}
    for variant in points(made):
        for name, program in variant.programs.items():
            stage = variant.experiment.stages[name]
            data = identity(stage)
            if data is None:
                continue
            key = name, data.canonical()
            if key not in found:
                found[key] = _job(stage, data, variant.experiment.root)
            file = modules[name, digest.structure(program)]
            _add(found[key], stage, program, file, texts[file])
    return list(found.values())


def points(made: Compiled) -> Iterator[Variant]:
    """Every structural variant, at every point of the sweep over its data."""
    for variant in made.space.variants:
        over = [axis for axis in made.space.loops if _is_of_data(axis, variant.experiment)]
        for rows in itertools.product(*(range(min(POINTS, len(axis.rows))) for axis in over)):
            moved = [each for axis, row in zip(over, rows, strict=True) for each in axis.row(row)]
            yield _moved(variant, made, moved) if moved else variant


def _is_of_data(axis: Axis, experiment: Experiment) -> bool:
    return axis.meets(experiment, [(*stage.path, "data") for stage in experiment.stages.values()])


def _moved(variant: Variant, made: Compiled, moved: Sequence[Any]) -> Variant:
    from expc.lower import lower

    experiment = resolve(made.document, (*variant.overrides(), *moved))
    programs = {
        name: _with_values(program, lower(experiment, experiment.stages[name], frozenset())[0])
        for name, program in variant.programs.items()
    }
    return replace(variant, experiment=experiment, programs=programs)


def _with_values(program: Program, moved: Program) -> Program:
    """The same program, its flags with the values of another point."""
    values = {flag.path: flag.default for flag in moved.flags}
    flags = [replace(each, default=values.get(each.path, each.default)) for each in program.flags]
    return replace(program, flags=tuple(flags))


def _job(stage: Stage, data: Identity, root: Path) -> Job:
    use = stage.uses["data"]
    source = json.dumps([data.use, data.params, data.code], sort_keys=True)
    return Job(stage.name, data, source, _hashed(stage, root), groups=groups_of(use))


def _hashed(stage: Stage, root: Path) -> list[File]:
    try:
        return [hashed(name, root) for name in files(stage, root)]
    except OSError as error:
        name = os.path.relpath(error.filename, root)
        raise NotProfiled(f"{stage.name}: {name}: {error.strerror}", foreseen=True) from error


def _add(job: Job, stage: Stage, program: Program, file: str, text: str) -> None:
    """Another program on the same data; one whose figures are all known adds nothing."""
    floors = [_floor(edge, params_of(use), use.name) for edge, use in figures(stage, program)]
    known = [floor for those in job.floors for floor in those]
    if job.programs and all(floor in known for floor in floors):
        return
    values = {flag.field: flag.default for flag in program.flags}
    job.programs.append({"file": file, "text": text, "values": values})
    job.floors.append(floors)
    meanings = {port: word for word, port in COLUMN_PORTS.items()}
    known_columns = columns_of(stage.uses["data"])
    for name in _names(program):
        if name in known_columns:
            job.columns[name] = meanings[known_columns[name].port]
    job.inputs += [name for name in _inputs(program) if name not in job.inputs]


def _floor(edge: Edge, params: dict[str, Any], use: str) -> Floor:
    return Floor(edge.key, use, params, edge.reads.name, edge.target, {})


def _names(program: Program) -> list[str]:
    """The columns of a batch, in order, by their names in the data."""
    listed = dict(program.feed.build.kwargs).get("columns", ())
    return [str(name) for name in listed] if isinstance(listed, tuple) else []


def _inputs(program: Program) -> list[str]:
    """The columns that the net reads."""
    named = {v.name: n for v, n in zip(program.feed.columns, _names(program), strict=True)}
    forward = next(each for each in program.routines if each.name == "forward")
    return [named[value.name] for value in forward.ins]


# ----------------------------------------------------------------------------------------------------- child


def _asked(found: Sequence[Job], experiment: Experiment) -> list[dict[str, Any]]:
    """Ask a child that has torch. Its progress goes to stderr as it comes."""
    question = {"spec": experiment.file, "jobs": [job.asked() for job in found]}
    try:
        told = ask("expc_runtime.profile", question, experiment.root, progress=True)
    except ChildFailed as error:
        raise NotProfiled(str(error), foreseen=False) from error
    if "failed" in told:
        raise NotProfiled(f"{told['stage']}: {told['failed']}", foreseen=True)
    answers: list[dict[str, Any]] = told["stages"]
    return answers


def _facts(job: Job, told: Mapping[str, Any]) -> StageFacts:
    return StageFacts(
        stage=job.stage,
        data=job.data,
        files=tuple(job.files),
        content=told["content"],
        rows=told["rows"],
        distinct=told["distinct"],
        inputs=tuple(job.inputs),
        splits={name: made(Split, each, name) for name, each in told["splits"].items()},
        columns={name: made(Column, each, name) for name, each in told["columns"].items()},
        floors=tuple(_floors(job, told["floors"])),
    )


def _floors(job: Job, told: Sequence[Mapping[str, float]]) -> Iterator[Floor]:
    """Every figure with its floors, each once: variants of a program share most of them."""
    seen: set[str] = set()
    for floors, values in zip(job.floors, told, strict=True):
        for floor in floors:
            known = {
                split: value
                for split in ("train", "val", "test")
                if (value := values.get(f"{split}/{floor.figure}")) is not None
            }
            named = f"{floor.figure} {floor.key}"
            if named not in seen:
                seen.add(named)
                yield replace(floor, values=known)
