"""Lower stages to programs: what `lint`, `plan` and `compile` have in common."""

from __future__ import annotations

from collections.abc import Iterable

from expc.experiment import Experiment, Stage
from expc.findings import Finding
from expc.ir import Program
from expc.kinds.builder import Builder
from expc.kinds.names import hides_module
from expc.passes import optimise
from expc.source import KeyPath


def lower(
    experiment: Experiment, stage: Stage, swept: Iterable[KeyPath] = ()
) -> tuple[Program, list[Finding]]:
    """The program of a stage, and what did not fit while it was written."""
    builder = Builder(experiment, stage, frozenset(swept))
    builder.findings += hides_module(stage.name, experiment.key(*stage.path))
    program = stage.kind.lower(stage, builder)
    return optimise(program), builder.findings
