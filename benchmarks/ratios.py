"""Costs taken in turn, compared as ratios: what else the machine does falls on all sides alike."""

import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Costs = dict[str, list[float]]


@dataclass(frozen=True)
class Verdict:
    """A median figure, its quartiles, and the budget it is held against."""

    what: str
    low: float
    figure: float
    high: float
    budget: float
    unit: str = "x"
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        return self.figure >= self.budget if self.at_least else self.figure <= self.budget

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        spread = f"{self.low:.3g} - {self.high:.3g}"
        told = "met" if self.met else "MISSED"
        figures = f"{self.figure:8.3f} {self.unit:<3} ({spread:>13})"
        return f"{self.what:<52} {figures}  {sign} {self.budget:g}  {told}  {self.note}".rstrip()


def in_turn(variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> Costs:
    """``rounds`` costs of each variant, one of each in every round, the first of them rotating."""
    names = list(variants)
    costs: Costs = {name: [] for name in names}
    for turn in range(-warm_up, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            cost = variants[name]()
            if turn >= 0:
                costs[name].append(cost)
    return costs


def ratio(
    what: str, over: Sequence[float], under: Sequence[float], budget: float, note: str = ""
) -> Verdict:
    """The median, over rounds, of the ratio of two costs of the same round; at most ``budget``."""
    return Verdict(what, *_quartiles(_divided(over, under)), budget, note=note)


def speed_up(
    what: str, over: Sequence[float], under: Sequence[float], budget: float, note: str = ""
) -> Verdict:
    """The same, for a ratio that is to be at least ``budget``."""
    return Verdict(what, *_quartiles(_divided(over, under)), budget, at_least=True, note=note)


def at_most(what: str, costs: Sequence[float], budget: float, unit: str, note: str = "") -> Verdict:
    """The median of ``costs`` against a budget that is no ratio."""
    return Verdict(what, *_quartiles(costs), budget, unit, note=note)


def _divided(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def _quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    if len(figures) == 1:
        return figures[0], figures[0], figures[0]
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return low, middle, high


def cpu_of(argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> float:
    """CPU seconds, user and system, of a process run in ``folder``, with its children.

    RuntimeError if it fails: what fails costs nothing worth knowing.
    """
    before = _children()
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exits {done.returncode}:\n{done.stdout}{done.stderr}")
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> str:
    """The machine in words; no name of it."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"load {load}"
    )


def report(title: str, verdicts: Sequence[Verdict]) -> int:
    """Print the figures; 1 if a budget is missed."""
    print(f"\n{title}  [{machine()}]")
    for verdict in verdicts:
        print(f"  {verdict}")
    sys.stdout.flush()
    return 0 if all(verdict.met for verdict in verdicts) else 1
