"""A value that nothing reads is not computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from expc.ir import Call, Op, Operand, Program, Value

_EFFECTS = frozenset({"step", "sync", "record", "metric", "return"})


def drop_unused(program: Program) -> Program:
    """Leave out pure operations whose results nobody uses."""
    phases = tuple(replace(phase, ops=_live(phase.ops, ())) for phase in program.phases)
    routines = tuple(
        replace(routine, ops=_live(routine.ops, routine.out)) for routine in program.routines
    )
    return program.with_phases(phases).with_routines(routines)


def _live(ops: tuple[Op, ...], out: tuple[Value, ...]) -> tuple[Op, ...]:
    wanted = {value.name for value in out}
    kept: list[Op] = []
    for op in reversed(ops):
        acts = op.kind in _EFFECTS or not op.out
        if acts or any(value.name in wanted for value in op.out):
            kept.append(op)
            wanted |= {value.name for value in _read(op)}
    return tuple(reversed(kept))


def _read(op: Op) -> Iterator[Value]:
    yield from _values((*op.ins, *(operand for _, operand in op.kwargs)))


def _values(operands: Iterable[Operand]) -> Iterator[Value]:
    for operand in operands:
        if isinstance(operand, Value):
            yield operand
        elif isinstance(operand, tuple):
            yield from _values(operand)
        elif isinstance(operand, Call):
            yield from _values((*operand.args, *(inner for _, inner in operand.kwargs)))
