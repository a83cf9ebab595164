"""Floors for people: what a constant answer reaches, one line for each figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from expc.facts import Facts, Floor, StageFacts


def floors(facts: Facts) -> str:
    """A table of floors by stage and figure, a column for each split."""
    rows = [row for stage in facts.stages for row in _rows(stage)]
    splits = [s for s in ("train", "val", "test") if any(s in values for _, values in rows)]
    wide = max((len(name) for name, _ in rows), default=0)
    lines = ["Floors: what a constant answer reaches", f"  {'':<{wide}}{_cells(splits)}"]
    for name, values in rows:
        cells = [f"{values[split]:.4g}" if split in values else "" for split in splits]
        lines.append(f"  {name:<{wide}}{_cells(cells)}".rstrip())
    return "\n".join(lines)


def _cells(words: list[str]) -> str:
    return "".join(f"  {word:>9}" for word in words)


def _rows(stage: StageFacts) -> Iterator[tuple[str, dict[str, float]]]:
    times = Counter(floor.figure for floor in stage.floors)
    for floor in stage.floors:
        yield f"{stage.stage}.{_named(floor, times)}", floor.values


def _named(floor: Floor, times: Counter[str]) -> str:
    """A figure that means something else in another variant is told with what it is there."""
    if times[floor.figure] < 2:
        return floor.figure
    told = ", ".join([floor.use, *(f"{key} {value}" for key, value in floor.params.items())])
    return f"{floor.figure} ({told})"
