"""A value that nothing reads is not computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from expc.ir import Op, Phase, Program, read_by

_EFFECTS = frozenset({"step", "sync", "record", "metric"})


def drop_unused(program: Program) -> Program:
    """Leave out pure operations whose results nobody uses."""
    phases: list[Phase] = []
    wanted: set[str] = set()  # by phases that come later
    for phase in reversed(program.phases):
        ops = _live(phase.ops, wanted)
        wanted |= {value.name for op in ops for value in read_by(op)}
        phases.insert(0, replace(phase, ops=ops))
    routines = tuple(
        replace(routine, ops=_live(routine.ops, {value.name for value in routine.out}))
        for routine in program.routines
    )
    return program.with_phases(tuple(phases)).with_routines(routines)


def _live(ops: tuple[Op, ...], out: Collection[str]) -> tuple[Op, ...]:
    wanted = set(out)
    kept: list[Op] = []
    for op in reversed(ops):
        acts = op.kind in _EFFECTS or not op.out
        if acts or any(value.name in wanted for value in op.out):
            kept.append(op)
            wanted |= {value.name for value in read_by(op)}
    return tuple(reversed(kept))
