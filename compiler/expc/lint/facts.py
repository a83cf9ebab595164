"""What is known of the data at a point of a spec's sweep. Facts are read once for each file, while it stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from expc.components.core import Use
from expc.experiment import Experiment, Stage
from expc.facts import Column, Damaged, Facts, Identity, StageFacts, floor_key, place, read
from expc.identity import changed, identity
from expc.ir import Program
from expc.kinds.shapes import Until
from expc.lint.readings import Edge, metrics, terms
from expc.resolve import spec_path
from expc.source import KeyPath
from expc.sweep import Variant


def facts_file(experiment: Experiment) -> Path:
    """Where the facts of a spec lie."""
    return place(experiment.root / experiment.file)


def facts_of(experiment: Experiment) -> Facts | Damaged | None:
    """The facts beside a spec; None where there are none."""
    path = facts_file(experiment)
    try:
        stat = path.stat()
    except OSError:
        return None
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, size: int, stamp: int) -> Facts | Damaged | None:
    try:
        return read(path)
    except Damaged as error:
        return error


def of_stage(stage: Stage, experiment: Experiment) -> list[StageFacts]:
    """Everything that is kept of a stage, of whatever data."""
    facts = facts_of(experiment)
    return (
        [each for each in facts.stages if each.stage == stage.name]
        if isinstance(facts, Facts)
        else []
    )


def kept(stage: Stage, experiment: Experiment) -> StageFacts | None:
    """Facts of the data that a stage names, whether or not they still hold."""
    now = identity(stage)
    if now is None:
        return None
    wanted = now.canonical()
    found = (each for each in of_stage(stage, experiment) if each.data.canonical() == wanted)
    return next(found, None)


def known(stage: Stage, at: Variant) -> StageFacts | None:
    """Facts of the data that a stage names, if they still hold."""
    facts = kept(stage, at.experiment)
    return None if facts is None or changed(facts, stage, at.experiment.root) else facts


def holds(stage: Stage, experiment: Experiment) -> bool:
    """Whether what is kept of a stage is true of its data now. One whose data is swept holds at its points alone."""
    facts = kept(stage, experiment)
    if facts is None:
        return kept_elsewhere(stage, experiment)
    return not changed(facts, stage, experiment.root)


def kept_elsewhere(stage: Stage, experiment: Experiment) -> bool:
    """Whether facts are kept of the data with other values of what a sweep sets: not every point of it is profiled."""
    now = identity(stage)
    below = (*stage.path, "data")
    paths = map(spec_path, (*experiment.sweep.grid, *experiment.sweep.zip))
    swept = [path[len(below) :] for path in paths if path[: len(below)] == below]
    if now is None or not swept:
        return False
    wanted = _but_for(now, swept)
    return any(_but_for(each.data, swept) == wanted for each in of_stage(stage, experiment))


def _but_for(data: Identity, swept: Iterable[KeyPath]) -> object:
    """What a spec writes of its data, without some of its keys."""
    held: dict[Any, Any] = {"use": data.use, **data.params, **data.settings}
    for path in swept:
        held = _without(held, path)
    return held


def _without(held: Mapping[Any, Any], path: KeyPath) -> dict[Any, Any]:
    if not path:
        return {}
    left = {key: value for key, value in held.items() if key != path[0]}
    inner = held.get(path[0])
    if len(path) > 1 and isinstance(inner, dict) and (rest := _without(inner, path[1:])):
        left[path[0]] = rest
    return left


def known_column(stage: Stage, at: Variant, name: str) -> Column | None:
    """What is known of a column of a stage's data."""
    facts = known(stage, at)
    return facts.columns.get(name) if facts is not None else None


def known_floor(stage: Stage, at: Variant, edge: Edge, split: str) -> float | None:
    """What a constant answer reaches on a loss or a metric, measured on a split."""
    facts = known(stage, at)
    use = use_of(stage, edge)
    return facts.floor(key_of(use, edge), split) if facts is not None and use is not None else None


def gated_split(until: Until) -> str:
    """The split that a gate is measured on."""
    split, slash, _ = (until.metric or "").partition("/")
    return split if slash else until.on


def use_of(stage: Stage, edge: Edge) -> Use | None:
    """The component behind a loss or a metric."""
    return stage.maps.get(str(edge.op.path[-2]), {}).get(edge.key)


def key_of(use: Use, edge: Edge) -> str:
    """Names what the floor of a loss or a metric depends on, beside the data."""
    return floor_key(use.name, params_of(use), edge.reads.name, edge.target)


def params_of(use: Use) -> dict[str, object]:
    """Parameters that are not their defaults, as JSON."""
    return use.params.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude_none=True
    )


def figures(stage: Stage, program: Program) -> Iterator[tuple[Edge, Use]]:
    """Every loss and metric of a program, with its component."""
    for edge in (*terms(program), *metrics(program)):
        use = use_of(stage, edge)
        if use is not None:
            yield edge, use
