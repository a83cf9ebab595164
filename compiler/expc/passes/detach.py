"""A value made in one phase and used in another carries no gradient there: an explicit, visible detach."""

from __future__ import annotations

from dataclasses import replace

from expc.ir import Call, Op, Operand, Phase, Program, Value


def detach_across_phases(program: Program) -> Program:
    """Insert one detach for each value that crosses a phase, just before its first use there."""
    return program.with_phases(tuple(_detached(phase) for phase in program.phases))


def _detached(phase: Phase) -> Phase:
    made: dict[Value, Value] = {}
    ops: list[Op] = []

    def inside(operand: Operand, op: Op) -> Operand:
        if isinstance(operand, tuple):
            return tuple(inside(item, op) for item in operand)
        if isinstance(operand, Call):
            kwargs = tuple((name, inside(item, op)) for name, item in operand.kwargs)
            return replace(operand, args=tuple(inside(a, op) for a in operand.args), kwargs=kwargs)
        if not isinstance(operand, Value) or not operand.grad:
            return operand
        if operand.phase in ("", phase.name):
            return operand
        if operand not in made:
            out = replace(operand, name=f"{operand.name}_sg", grad=False, phase=phase.name)
            target = "expc_runtime.module:detach_tree" if operand.port.tree else ".detach()"
            ops.append(Op("detach", (out,), target, (operand,), op.span, op.path))
            made[operand] = out
        return made[operand]

    for op in phase.ops:
        if op.kind == "detach":
            ops.append(op)
            continue
        ins = tuple(inside(operand, op) for operand in op.ins)
        kwargs = tuple((name, inside(operand, op)) for name, operand in op.kwargs)
        ops.append(replace(op, ins=ins, kwargs=kwargs))
    return replace(phase, ops=tuple(ops))
