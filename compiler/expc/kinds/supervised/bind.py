"""Bind names: which column the model reads, which head and which column each loss and metric compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from expc.components.core import Column, Use
from expc.components.data import HEAD_PORTS, columns_of
from expc.experiment import Stage
from expc.findings import Finding, Span, listed, suggest
from expc.ir import (
    Any_,
    BinaryLogits,
    ClassId,
    ClassLogits,
    ClassProbs,
    Features,
    Port,
    Prob,
    Real,
    Value,
)
from expc.kinds.builder import Builder
from expc.kinds.names import TAKEN, is_local


@dataclass(frozen=True)
class Binding:
    """What a loss or a metric compares: an answer of the net with a column."""

    key: str
    use: Use
    head: str
    target: Value


@dataclass(frozen=True)
class Bound:
    """A stage with its names bound. `columns` are what a batch holds, in order, by their names in the data."""

    inputs: tuple[Value, ...]
    columns: Mapping[str, Value]
    losses: tuple[Binding, ...]
    metrics: tuple[Binding, ...]

    @property
    def targets(self) -> tuple[Value, ...]:
        """The columns that losses compare with, each once."""
        return tuple(dict.fromkeys(binding.target for binding in self.losses))

    def target_of(self, head: str) -> Value | None:
        """The column that a head is trained on; for one that is not, the first that it is measured on."""
        bound = (*self.losses, *self.metrics)
        return next((each.target for each in bound if each.head == head), None)


def bind(stage: Stage, b: Builder) -> Bound:
    """Bind every name of a stage; names that lead nowhere become findings."""
    known = columns_of(stage.uses["data"])
    taken = _inputs(stage, b, _values(b, known))
    read = {value.name: _as_input(value, stage.maps["heads"]) for value in taken}
    inputs = tuple(read.values())
    targets = {value.name: read.get(value.name, _as_target(value)) for value in _values(b, known)}
    losses = tuple(_losses(stage, b, targets))
    trained = {binding.head: binding.target for binding in reversed(losses)}
    metrics = tuple(_metrics(stage, b, targets, trained))
    used = {*inputs, *(binding.target for binding in (*losses, *metrics))}
    columns = {name: value for name, value in targets.items() if value in used}
    b.findings += (_no_local(b, name) for name in columns if not is_local(name))
    return Bound(inputs, columns, losses, metrics)


def _values(b: Builder, known: dict[str, Column]) -> list[Value]:
    span = b.experiment.value(*b.path("data"))
    return [
        Value(name, column.port, span, grad=False, shape=_shape(column))
        for name, column in known.items()
    ]


def _shape(column: Column) -> str:
    inner = ", ".join(str(size) for size in column.shape)
    return f"(B, {inner})" if inner else "(B, ...)" if column.port is Features else "(B,)"


def _as_input(value: Value, heads: Mapping[str, Use]) -> Value:
    """A column under the name that the net reads it by: its own, unless that means something else there."""
    taken = value.name in heads or value.name in TAKEN
    return replace(value, name=f"{value.name}_input") if taken else value


def _as_target(value: Value) -> Value:
    """A column under the name it has where it is compared. One that is also read keeps the name it has there."""
    return replace(value, name=f"{value.name}_target")


def _no_local(b: Builder, column: str) -> Finding:
    return Finding(
        "XC105",
        f"column `{column}` can't be a variable",
        b.experiment.key(*b.path("data", "columns", column)),
        why="columns become variables of the generated code",
        help="rename it in the data: letters, digits and `_`, no word of Python",
    )


def _losses(stage: Stage, b: Builder, targets: dict[str, Value]) -> Iterable[Binding]:
    heads = stage.maps["heads"]
    for key, use in stage.maps["loss"].items():
        head = _named(b, use, "of") or (key if key in heads else "")
        if head not in heads:
            b.findings.append(_no_head(b, use, key, head, list(heads)))
            continue
        column = _named(b, use, "target") or (key if key in targets else head)
        if column not in targets:
            b.findings.append(_no_column(b, use, key, column, list(targets)))
            continue
        yield Binding(key, use, head, targets[column])


def _metrics(
    stage: Stage, b: Builder, targets: dict[str, Value], trained: dict[str, Value]
) -> Iterable[Binding]:
    heads = stage.maps["heads"]
    for key, use in stage.maps.get("metrics", {}).items():
        head = _named(b, use, "of")
        if head not in heads:
            b.findings.append(_no_head(b, use, key, head, list(heads)))
            continue
        column = _named(b, use, "target")
        if not column and head in trained:
            yield Binding(key, use, head, trained[head])
        elif (column or head) in targets:
            yield Binding(key, use, head, targets[column or head])
        else:
            b.findings.append(_no_column(b, use, key, column or head, list(targets)))


def _named(b: Builder, use: Use, key: str) -> str:
    return str(b.static(*b.keys(use.path), key) or "")


def _no_head(b: Builder, use: Use, key: str, head: str, heads: list[str]) -> Finding:
    hint = suggest(head or key, heads)
    return Finding(
        "XC303",
        f"there is no head `{head}`" if head else f"loss `{key}` names no head",
        _span(b, use, "of"),
        why=f"`{key}` would have nothing to read",
        help=f"{hint} (heads: {listed(heads)})"
        if hint
        else f"say `of:` with one of {listed(heads)}",
    )


def _no_column(b: Builder, use: Use, key: str, column: str, columns: list[str]) -> Finding:
    hint = suggest(column, columns)
    named = listed(columns)
    return Finding(
        "XC304",
        f"the data has no column `{column}`",
        _span(b, use, "target"),
        why=f"`{key}` would have nothing to compare with",
        help=f"{hint} (columns: {named})" if hint else f"say `target:` with one of {named}",
    )


def _span(b: Builder, use: Use, key: str) -> Span:
    """The key's value where it was written, else the component's own name."""
    written = b.written(*b.keys(use.path), key)
    return b.experiment.value(*use.path, key) if written else b.experiment.key(*use.path)


def _inputs(stage: Stage, b: Builder, columns: list[Value]) -> tuple[Value, ...]:
    """The columns that the first part of the model takes, in the order of its arguments."""
    name, use = next(iter(stage.maps["model"].items()))
    renamed = stage.uses["data"].slot.inputs
    b.static("data", "inputs")
    known = {value.name: value for value in columns}
    features = [value for value in columns if value.port in (Features, Any_)]
    optional = use.component.optional
    offered = [n for n, name in enumerate(optional, 1) if name in renamed or name in known]
    wanted = [*use.component.inputs, *optional[: max(offered, default=0)]]
    if not renamed and len(wanted) == 1 and wanted[0] not in known and len(features) == 1:
        return (features[0],)
    found = []
    for parameter in wanted:
        column = renamed.get(parameter, parameter)
        if column in known:
            found.append(known[column])
        else:
            b.findings.append(_no_input(b, use, name, parameter, column, list(known)))
    return tuple(found)


def _no_input(
    b: Builder, use: Use, part: str, parameter: str, column: str, columns: list[str]
) -> Finding:
    bound = b.path("data", "inputs", parameter)
    place = bound if b.experiment.is_written(bound) else (*use.path, "use")
    hint = suggest(column, columns)
    named = f"columns: {listed(columns)}"
    return Finding(
        "XC304",
        f"model part `{part}` takes `{parameter}`, and the data has no column `{column}`",
        b.experiment.value(*place),
        why="the net would have nothing to read",
        help=f"{hint} ({named})"
        if hint
        else f"bind `data: {{inputs: {{{parameter}: ...}}}}` ({named})",
    )


def port_of(b: Builder, bound: Bound, head: str) -> Port:
    """What a head's numbers mean: as the spec says, or as its loss's target asks."""
    stated = b.static("heads", head, "gives")
    if isinstance(stated, str):
        return HEAD_PORTS[stated]
    target = bound.target_of(head)
    implied = {Prob: BinaryLogits, ClassId: ClassLogits, ClassProbs: ClassLogits, Real: Real}
    return implied.get(target.port, Any_) if target is not None else Any_
