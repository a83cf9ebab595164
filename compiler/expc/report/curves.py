"""Learning curves: the lines of metrics.jsonl as one series for each metric and condition, in bounded memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Curve", "Point", "Series", "collect", "lines", "rank"]

_NOT_FIGURES = frozenset(
    {"step", "epoch", "split", "mode", "attempt", "run_id", "time", "env_steps"}
)
_POINTS = 60_000  # of all curves of a stage together
_FEWEST, _MOST = 24, 160  # points of one curve
_TAIL = 1 << 14


@dataclass(frozen=True, slots=True)
class Point:
    """One pixel of a curve: the mean over seeds, and the extremes over seeds and steps that fall on it."""

    step: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One condition's course of one metric."""

    condition: str
    points: tuple[Point, ...]


@dataclass
class Series:
    """One metric of a stage."""

    name: str
    curves: list[Curve] = field(default_factory=list)


class _Bins:
    """Running mean and extremes of each pixel: of one run, or over runs."""

    __slots__ = ("_bins",)

    def __init__(self) -> None:
        self._bins: dict[int, list[float]] = {}  # pixel -> count, steps, values, low, high

    def add(self, place: int, step: float, value: float, low: float, high: float) -> None:
        held = self._bins.get(place)
        if held is None:
            self._bins[place] = [1, step, value, low, high]
            return
        held[0] += 1
        held[1] += step
        held[2] += value
        held[3] = min(held[3], low)
        held[4] = max(held[4], high)

    def __len__(self) -> int:
        return len(self._bins)

    def items(self) -> Iterator[tuple[int, Point]]:
        for place, (count, steps, values, low, high) in sorted(self._bins.items()):
            yield place, Point(steps / count, values / count, low, high)


def collect(
    conditions: Sequence[tuple[str, Sequence[Path]]], steps: int
) -> tuple[dict[str, Series], dict[str, tuple[float, ...]]]:
    """The curves of a stage by metric, and its floors as they were logged: those that differ in four digits.

    Args:
        conditions: name, and the stage folder of each of its runs.
        steps: the largest step that any of them is known to have reached; files may know of more.
    """
    folders = [folder for _, many in conditions for folder in many]
    last = max([steps, *(_last_step(folder / "metrics.jsonl") for folder in folders)], default=0)
    names = len(_names(folders))
    share = _POINTS // max(1, len(conditions) * names)
    wide = max(1, last) / min(_MOST, max(_FEWEST, share))
    found: dict[str, Series] = {}
    floors: dict[str, list[float]] = {}
    courses: set[str] = set()  # what some run has more than one value of
    for condition, many in conditions:
        over: dict[str, _Bins] = {}
        for folder in many:
            for name, bins in _one(folder / "metrics.jsonl", wide, floors).items():
                together = over.setdefault(name, _Bins())
                if len(bins) > 1:
                    courses.add(name)
                for place, point in bins.items():
                    together.add(place, point.step, point.mean, point.low, point.high)
        for name, bins in over.items():
            curve = Curve(condition, tuple(point for _, point in bins.items()))
            found.setdefault(name, Series(name)).curves.append(curve)
    drawn = {name: series for name, series in found.items() if name in courses}
    return drawn, {name: _distinct(values) for name, values in floors.items()}


def _distinct(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({f"{value:.4g}": value for value in values}.values()))


def _one(path: Path, wide: float, floors: dict[str, list[float]]) -> dict[str, _Bins]:
    """Of one run; floors go to ``floors``."""
    bins: dict[str, _Bins] = {}
    for line in lines(path):
        floor = line["split"] == "floor"
        aside = " (train mode)" if line.get("aside") else ""
        for name, value in line.items():
            if name in _NOT_FIGURES or not _number(value):
                continue
            if floor:
                floors.setdefault(name.removeprefix("floor/"), []).append(value)
                continue
            step = float(line["step"])
            bins.setdefault(name + aside, _Bins()).add(int(step / wide), step, value, value, value)
    return bins


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that still hold, in the order of the file.

    A later attempt starts again from its checkpoint: lines of the same split at its steps or above are superseded. A torn
    line, which a kill leaves, is dropped; so is whatever is not a line of figures. ``aside`` marks figures of another mode
    than the split's own.
    """
    held: dict[tuple[str, str], list[dict[str, Any]]] = {}
    numbers: dict[int, int] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file):
                line = _line(text)
                if line is None:
                    continue
                stack = held.setdefault((line["split"], str(line.get("mode", ""))), [])
                while stack and stack[-1]["step"] >= line["step"]:
                    stack.pop()
                stack.append(line)
                numbers[id(line)] = number
    except OSError:
        return []
    for (split, mode), stack in held.items():
        if mode == "train" and (split, "eval") in held:
            for line in stack:
                line["aside"] = True
    every = [line for stack in held.values() for line in stack]
    return sorted(every, key=lambda line: numbers[id(line)])


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("split"), str):
        return None
    step = line.get("step")
    return line if _number(step) and step is not None and step >= 0 else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _last_step(path: Path) -> int:
    """The largest step among the last lines of the file, read from its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    steps = [int(line["step"]) for line in map(_line, tail) if line is not None]
    return max(steps, default=0)


def _names(folders: Sequence[Path]) -> set[str]:
    """Names of the figures in the first file that has any."""
    for folder in folders:
        found = {
            name
            for line in lines(folder / "metrics.jsonl")
            for name in line
            if name not in _NOT_FIGURES
        }
        if found:
            return found
    return set()


def rank(series: Mapping[str, Series], wanted: Sequence[str]) -> list[str]:
    """Names in the order in which they are worth looking at: what is asked for, what was measured on rows that were held
    out, what training logs, and the settings that moved it."""
    splits = ("eval/", "val/", "test/", "train/")

    def place(name: str) -> tuple[int, int]:
        split = next((i for i, s in enumerate(splits) if name.startswith(s)), len(splits))
        late = name.endswith(" (train mode)")
        return (0 if name in wanted else 1 + late, split)

    return sorted(series, key=place)
