"""How long a sweep still takes, as a range: from how long stages of each name took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_EIGHTY = 1.2816
"""Standard deviations that hold 80 % of a normal distribution."""
_UNKNOWN = 0.5
"""Relative deviation of a stage that was seen once, or of which only the pace is known."""


@dataclass(frozen=True)
class Left:
    """Seconds: the middle, and a range that 80 % of sweeps end in."""

    seconds: float
    low: float
    high: float


@dataclass
class Took:
    """Seconds that instances of one stage took (Welford)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float) -> None:
        """One more is done."""
        self.n += 1
        step = seconds - self.mean
        self.mean += step / self.n
        self.squares += step * (seconds - self.mean)

    @property
    def variance(self) -> float:
        """Of one instance."""
        return self.squares / (self.n - 1) if self.n > 1 else (_UNKNOWN * self.mean) ** 2


@dataclass
class Work:
    """What is known of the stages of a sweep."""

    took: dict[str, Took] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    """Instances that have not begun, by stage."""
    running: list[tuple[str, float, float | None]] = field(default_factory=list)
    """Stage, seconds so far, seconds left by its own pace (None: unknown)."""


def left(work: Work, jobs: int) -> Left | None:
    """Seconds until all of ``work`` is done on ``jobs`` slots; None where nothing tells.

    The sum of n draws, predicted from k that were seen, has the variance s^2 (n + n^2 / k). A stage of which none is
    done takes as long as one that runs will, by its pace; else as long as the stages that are known, on average.
    """
    known = dict(_known(work))
    if not known:
        return Left(0.0, 0.0, 0.0) if not work.pending and not work.running else None
    others = Took(1, sum(took.mean for took in known.values()) / len(known))
    total = variance = longest = 0.0
    for stage, n in work.pending.items():
        took = known.get(stage, others)
        total += n * took.mean
        variance += took.variance * (n + n * n / took.n)
    for stage, spent, own in work.running:
        rest = own if own is not None else max(0.0, known.get(stage, others).mean - spent)
        total += rest
        variance += (0.1 * rest) ** 2 if own is not None else known.get(stage, others).variance
        longest = max(longest, rest)
    slots = max(1, min(jobs, sum(work.pending.values()) + len(work.running)))
    middle = max(total / slots, longest)
    band = _EIGHTY * math.sqrt(variance) / slots
    return Left(middle, max(0.0, middle - band), middle + band)


def _known(work: Work) -> Mapping[str, Took]:
    known = {stage: took for stage, took in work.took.items() if took.n}
    for stage, spent, own in work.running:
        if own is not None and stage not in known:
            known[stage] = Took(1, spent + own)
    return known
