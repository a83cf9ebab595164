"""What a stage's losses and metrics compare, as its program says it: the typed edges that rules reason about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from expc.components.core import Column, Use
from expc.components.data import columns_of
from expc.experiment import Stage
from expc.ir import Op, Port, Program, Value
from expc.kinds.shapes import Until
from expc.sweep import Variant


class Edge(NamedTuple):
    """A loss or a metric: the answer it reads, as what, and the column it compares with."""

    key: str
    head: str
    gives: Port
    reads: Port
    target: str
    op: Op


def terms(program: Program) -> list[Edge]:
    """The loss terms of a program."""
    return list(_edges(program, "term"))


def metrics(program: Program) -> list[Edge]:
    """The metrics of a program."""
    return list(_edges(program, "metric"))


def _edges(program: Program, kind: str) -> Iterator[Edge]:
    listed = dict(program.feed.build.kwargs).get("columns", ())
    names = listed if isinstance(listed, tuple) else ()
    columns = {
        value.name: str(name) for value, name in zip(program.feed.columns, names, strict=False)
    }
    for ops in (*(r.ops for r in program.routines), *(p.ops for p in program.phases)):
        made = {op.out[0].name: op.ins[0] for op in ops if op.kind == "convert"}
        for op in ops:
            if op.kind != kind or len(op.ins) < 2:
                continue
            pred, target = op.ins[0], op.ins[1]
            if isinstance(pred, Value) and isinstance(target, Value):
                origin = made.get(pred.name, pred)
                gives = origin if isinstance(origin, Value) else pred
                name = columns.get(target.name, target.name)
                yield Edge(str(op.path[-1]), gives.name, gives.port, pred.port, name, op)


def column(stage: Stage, name: str) -> Column | None:
    """What is known of a column of a stage's data."""
    return columns_of(stage.uses["data"]).get(name) if "data" in stage.uses else None


def logged_names(stage: Stage) -> dict[str, set[str]]:
    """Split -> the names that a stage logs there."""
    names: dict[str, set[str]] = {}
    for key in stage.kind.logged(stage):
        split, _, name = key.partition("/")
        names.setdefault(split, set()).add(name)
    return names


def watched_splits(stage: Stage) -> set[str]:
    """Where a monitor may watch a figure: what is measured when an epoch ends."""
    usual, gate = stage.kind.measured, gate_of(stage)
    held = {usual} if usual in logged_names(stage) else {"train"}
    gated = gate is not None and gate.metric and "train" in (gate.on, gate.metric.partition("/")[0])
    return held | {"train"} if gated else held


def optimizers(stage: Stage) -> list[Use]:
    """Every optimizer of a stage: most have one."""
    return [use for use in stage.every_use() if use.component.family == "optim"]


def gate_of(stage: Stage) -> Until | None:
    """When a stage ends, where its kind may have a gate."""
    until = getattr(stage.shape, "until", None)
    return until if isinstance(until, Until) else None


def epoch_updates(stage: Stage) -> int | None:
    """Batches in one epoch, where the number of rows is known: not where whole groups are held out or left out."""
    use = stage.uses.get("data")
    rows = use.component.rows if use is not None else None
    if use is None or rows is None:
        return None
    slot = use.slot
    if slot.limit is not None:
        if slot.limit.rows is None:
            return None
        rows = min(rows, slot.limit.rows)
    if slot.split.by is not None and (slot.split.val or slot.split.test):
        return None
    train: int = rows - round(rows * slot.split.val) - round(rows * slot.split.test)
    batch: int = slot.batch
    return max(1, train // batch if slot.drop_last else math.ceil(train / batch))


CLOCKS = ("epochs", "updates", "minutes", "env_steps")


def span_of(clock: object) -> tuple[str, float] | None:
    """The clock that a span of training names, and its amount."""
    for name in CLOCKS:
        amount = getattr(clock, name, None)
        if amount is not None:
            return name, amount
    return None


def in_updates(stage: Stage, span: tuple[str, float] | None) -> float | None:
    """A span in batches, where that can be known."""
    match span:
        case ("updates", amount):
            return amount
        case ("epochs", amount):
            each = epoch_updates(stage)
            return amount * each if each is not None else None
        case ("env_steps", amount):
            replay = getattr(stage.shape, "replay", None)
            frames = replay.batch * replay.length if replay is not None else 0
            return amount * replay.train_ratio / frames if replay is not None else None
    return None


def whole(stage: Stage) -> float | None:
    """Batches that a stage's budget holds, where that can be known: none are trained on while a replay is filled."""
    until, replay = getattr(stage.shape, "until", None), getattr(stage.shape, "replay", None)
    span = span_of(getattr(until, "clock", None))
    if span is None or span[0] != "env_steps" or replay is None:
        return in_updates(stage, span)
    prefill, pretrain = replay.prefill, replay.pretrain
    steps = span[1] - prefill.env_steps
    found = in_updates(stage, ("env_steps", steps))
    return found + (pretrain.updates if pretrain is not None else 0) if found is not None else None


def longer(stage: Stage, one: object, other: object) -> bool:
    """Whether one span is known to be longer than another."""
    a, b = span_of(one), span_of(other)
    if a is not None and b is not None and a[0] == b[0]:
        return a[1] > b[1]
    left, right = in_updates(stage, a), in_updates(stage, b)
    return left is not None and right is not None and left > right


def never(stage: Stage) -> dict[str, str]:
    """Events that never happen in a stage's environment, and why."""
    env = stage.uses.get("env")
    found = env.component.never if env is not None else None
    return dict(found(env.params)) if env is not None and found is not None else {}


def frames(stage: Stage) -> int | None:
    """Frames of a whole episode: that of the reset, and one for each step."""
    env = stage.uses.get("env")
    limit = getattr(env.params, "time_limit", None) if env is not None else None
    return limit + 1 if limit is not None else None


def dynamics(stage: Stage) -> Use | None:
    """How a stage's latent state moves, if it has one."""
    return stage.maps.get("model", {}).get("dynamics")


def has_boundaries(stage: Stage) -> bool:
    """Whether a stage learns where segments begin."""
    use = dynamics(stage)
    return use is not None and "boundaries" in use.component.traits


def measured(stage: Stage, at: Variant) -> Stage | None:
    """The stage that an evaluation measures, if it is there and runs."""
    name = getattr(stage.shape, "of", None)
    return None if name in at.condition.skips else at.experiment.stages.get(str(name))


def measures(stage: Stage, at: Variant) -> list[Stage]:
    """The evaluations of a stage that run at a point of the sweep, of its boundaries."""
    return [
        other
        for name, other in at.experiment.stages.items()
        if name not in at.condition.skips
        and getattr(other.shape, "of", None) == stage.name
        and reads_boundaries(other)
    ]


def reads_boundaries(stage: Stage) -> bool:
    """Whether a stage measures where segments begin."""
    use = stage.uses.get("measure")
    return use is not None and "reads_boundaries" in use.component.traits


def events(stage: Stage) -> list[str]:
    """What an evaluation holds boundaries against."""
    use = stage.uses.get("measure")
    return list(getattr(use.params, "events", ())) if use is not None else []
