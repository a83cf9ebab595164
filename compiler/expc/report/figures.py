"""Figures of a stage: mean and deviation over seeds, beside their floors; which one is best, if any is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from expc.report.gather import Run

__all__ = ["Condition", "Figure", "answered", "asked", "best", "conditions", "directions", "told"]

_SIGNS = {">": "higher", "<": "lower"}


@dataclass(frozen=True)
class Figure:
    """One metric of one condition."""

    seeds: tuple[tuple[str, float], ...]  # seed and value
    floors: tuple[float, ...] = ()
    changed: tuple[str, ...] = ()  # seeds whose value was made with settings that a retry changed

    @property
    def values(self) -> tuple[float, ...]:
        """The values alone."""
        return tuple(value for _, value in self.seeds)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for fewer than two."""
        return statistics.stdev(self.values) if len(self.seeds) > 1 else None

    @property
    def floor(self) -> float | None:
        """What a constant answer, or chance, reaches; the mean over seeds."""
        return statistics.fmean(self.floors) if self.floors else None


@dataclass
class Condition:
    """The runs of one condition at one stage."""

    name: str
    runs: list[Run] = field(default_factory=list)

    def states(self) -> dict[str, int]:
        """How many runs are in each state, with its detail: ``failed(diverged)``."""
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.status.label] = counts.get(run.status.label, 0) + 1
        return counts

    def figures(self) -> dict[str, Figure]:
        """Every metric that at least one seed has a figure of."""
        seeds: dict[str, list[tuple[str, float]]] = {}
        floors: dict[str, list[float]] = {}
        changed: dict[str, list[str]] = {}
        for run in self.runs:
            for name, value in run.metrics.items():
                if not _finite(value):
                    continue
                seeds.setdefault(name, []).append((run.seed, float(value or 0.0)))
                if _finite(floor := run.floors.get(name)):
                    floors.setdefault(name, []).append(float(floor or 0.0))
                if run.changed:
                    changed.setdefault(name, []).append(run.seed)
        return {
            name: Figure(tuple(v), tuple(floors.get(name, ())), tuple(changed.get(name, ())))
            for name, v in seeds.items()
        }


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def conditions(runs: Iterable[Run]) -> list[Condition]:
    """The runs of a stage by condition, in the order of the plan."""
    found: dict[str, Condition] = {}
    for run in runs:
        found.setdefault(run.condition, Condition(run.condition)).runs.append(run)
    return list(found.values())


def asked(runs: Iterable[Run]) -> list[str]:
    """Metrics that the stage's question is about."""
    names = (
        str(bound.get("metric", ""))
        for run in runs
        for bound in run.accept.get("bounds", ())
        if isinstance(bound, Mapping)
    )
    return [name for name in dict.fromkeys(names) if name]


def told(names: Sequence[str], wanted: Sequence[str], most: int = 8) -> list[str]:
    """The metrics of the first table: those that are asked for, else the last split that was measured."""
    chosen = [name for name in wanted if name in names]
    if not chosen:
        splits = [s for s in ("test/", "val/", "eval/", "") if any(n.startswith(s) for n in names)]
        chosen = [name for name in names if splits and name.startswith(splits[0])]
    return chosen[:most]


def directions(
    names: Iterable[str], declared: Mapping[str, str], runs: Iterable[Run]
) -> dict[str, str]:
    """``higher`` or ``lower`` for each metric of which it is known: from the spec, else from what it is accepted by."""
    bounds = {
        str(bound.get("metric")): _SIGNS.get(str(bound.get("wanted", ""))[:1], "")
        for run in runs
        for bound in run.accept.get("bounds", ())
        if isinstance(bound, Mapping)
    }
    return {name: declared.get(name) or bounds.get(name, "") for name in names}


def best(figures: Sequence[Figure | None], better: str) -> int | None:
    """The figure that is best beyond the spread, if one is.

    It is better than its floor, and its mean leads every other one's by more than their deviations together,
    ``sqrt(s1^2 + s2^2)``; so both must have two seeds or more.
    """
    known = [(i, figure) for i, figure in enumerate(figures) if figure is not None]
    if better not in ("higher", "lower") or len(known) < 2:
        return None
    sign = 1.0 if better == "higher" else -1.0
    place, first = max(known, key=lambda pair: sign * pair[1].mean)
    if first.deviation is None:
        return None
    if first.floor is not None and sign * (first.mean - first.floor) <= 0:
        return None
    for other, figure in known:
        if other == place:
            continue
        if figure.deviation is None:
            return None
        if sign * (first.mean - figure.mean) <= math.hypot(first.deviation, figure.deviation):
            return None
    return place


def answered(condition: Condition) -> tuple[str, int, int, int]:
    """yes, no or open (seeds are missing that could still decide it); accepted, judged, wanted."""
    judged = [run for run in condition.runs if run.accept]
    met = sum(bool(run.accept.get("met")) for run in judged)
    wanted = max((int(run.accept.get("seeds", 1)) for run in judged), default=1)
    missing = len(condition.runs) - len(judged)
    answer = "yes" if met >= wanted else "open" if met + missing >= wanted else "no"
    return answer, met, len(judged), wanted
