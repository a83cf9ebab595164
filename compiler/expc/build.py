"""The driver: one call for each thing the command line does with a spec. It only directs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expc.experiment import Experiment
from expc.findings import Finding, Span, SpecError
from expc.ir import Plan
from expc.plan import plan
from expc.policy import misfits
from expc.project import project_root
from expc.resolve import Document, document, resolve
from expc.sweep import Space, space


@dataclass(frozen=True)
class Compiled:
    """A spec, all the way to its plan."""

    document: Document
    experiment: Experiment
    space: Space
    plan: Plan


def load(path: Path) -> tuple[Document, Experiment]:
    """A spec, read and resolved. Raises `SpecError`."""
    read = document(path, project_root(path))
    return read, resolve(read)


def compiled(path: Path) -> Compiled:
    """A spec with its plan. Raises `SpecError`."""
    read, experiment = load(path)
    variants = space(read, experiment)
    if findings := misfits(read, experiment, variants):
        raise SpecError(*findings)
    return Compiled(read, experiment, variants, plan(experiment, variants))


def folder_of(experiment: Experiment, out: Path | None = None) -> Path:
    """Where an experiment's files go: `generated/NAME` under the project root unless told otherwise."""
    return out if out is not None else experiment.root / "generated" / experiment.name


def shown(folder: Path, root: Path) -> str:
    """A folder as messages and generated files name it: from the project root, with `/`.

    Raises `SpecError` for a folder outside the project: generated files name their place from its root.
    """
    try:
        return folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        place = Span(str(folder), 1, 1)
        raise SpecError(
            Finding(
                "XC904",
                f"`{folder}` lies outside the project",
                place,
                why="generated modules find the project from where they stand",
                help="choose a folder under the project root",
            )
        ) from None
