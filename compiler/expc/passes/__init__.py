"""Rewrites of a program, each `Program -> Program`, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from expc.ir import Program
from expc.passes.detach import detach_across_phases
from expc.passes.unused import drop_unused

PASSES: tuple[Callable[[Program], Program], ...] = (detach_across_phases, drop_unused)


def optimise(program: Program) -> Program:
    """The program after every pass."""
    for rewrite in PASSES:
        program = rewrite(program)
    return program
