"""The program of an evaluation: no nets of its own, one call of its driver."""

from __future__ import annotations

from collections.abc import Iterator

from expc.experiment import Stage
from expc.findings import Finding, listed, suggest
from expc.ir import Call, Feed, Operand, Program
from expc.kinds.builder import Builder
from expc.kinds.evaluate.shape import Accept, Evaluate, logged
from expc.kinds.names import class_name

EVALUATE = "expc_runtime.evals.evaluate:evaluate"
"""The runtime's driver of evaluations."""


def lower(stage: Stage, b: Builder) -> Program:
    """The program of an evaluation stage."""
    shape: Evaluate = stage.shape
    b.static("of")
    b.findings += _unknown(stage, b)
    use = stage.uses["measure"]
    b.static("measure", "use")
    path = b.path("measure")
    build = Call(use.component.target, (), b.arguments(use))
    run: dict[str, Operand] = {"of": shape.of}
    if shape.accept is not None:
        run["accept"] = _accept(b, shape.accept)
    return Program(
        stage=stage.name,
        name=class_name(stage.name),
        about=shape.about or b.experiment.about,
        doc=f"Of stage `{shape.of}`: {use.component.about}.",
        feed=Feed(build, (), (), b.experiment.key(*path), path),
        nets=(),
        optims=(),
        routines=(),
        phases=(),
        driver=EVALUATE,
        run=tuple(run.items()),
        flags=b.flags(),
        logged=tuple(logged(stage)),
        own=b.own(),
        structural=frozenset(b.structural),
    )


def _accept(b: Builder, accept: Accept) -> Call:
    """The bounds as they are written: they are part of the question, and no flags."""
    b.static("accept")
    bounds = tuple(
        Call("expc_runtime.evals.accept:Bound", (bound.metric,), tuple(bound.bounds.items()))
        for bound in accept.all
    )
    seeds = (("seeds", accept.seeds),) if accept.seeds > 1 else ()
    return Call("expc_runtime.evals.accept:Accept", bounds, seeds)


def _unknown(stage: Stage, b: Builder) -> Iterator[Finding]:
    """A bound on what is not measured."""
    known = logged(stage)
    for index, bound in enumerate(stage.shape.accept.all if stage.shape.accept else ()):
        if bound.metric in known:
            continue
        hint = suggest(bound.metric, known)
        choices = f"it measures {listed(known)}"
        yield Finding(
            "XC203",
            f"stage `{stage.name}` does not measure `{bound.metric}`",
            b.experiment.value(*b.path("accept", "all", index)),
            why="the answer would be no, whatever is trained",
            help=f"{hint} ({choices})" if hint else choices,
        )
