"""When the question of a stage is answered with yes: bounds that one run meets, in enough seeds.

One run is judged by itself; how many seeds of a condition were accepted, the sweep's table says.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Accept", "Bound"]

_WORDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": (">=", operator.ge),
    "at_most": ("<=", operator.le),
    "above": (">", operator.gt),
    "below": ("<", operator.lt),
}


@dataclass(frozen=True)
class Bound:
    """What ``metric`` must reach; exactly one of the four is given, else ValueError."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        given = [word for word in _WORDS if getattr(self, word) is not None]
        if len(given) != 1:
            words = ", ".join(_WORDS)
            raise ValueError(f"bound on {self.metric}: one of {words}, not {len(given)}")

    def __str__(self) -> str:
        return f"{_WORDS[self._word][0]} {self._required:g}"

    def met(self, value: float | None) -> bool:
        """Whether ``value`` meets the bound; no figure (None, NaN) meets none."""
        return value is not None and _WORDS[self._word][1](value, self._required)

    @property
    def _word(self) -> str:
        return next(word for word in _WORDS if getattr(self, word) is not None)

    @property
    def _required(self) -> float:
        return float(getattr(self, self._word))


class Accept:
    """All ``bounds`` together, in at least ``seeds`` runs of a condition."""

    def __init__(self, *bounds: Bound, seeds: int = 1) -> None:
        if not bounds:
            raise ValueError("accept: without a bound everything would be accepted")
        if seeds < 1:
            raise ValueError(f"accept: {seeds} seeds; at least one must be wanted")
        self.bounds = bounds
        self.seeds = seeds

    def judge(
        self, metrics: Mapping[str, float | None], reasons: Mapping[str, str]
    ) -> dict[str, Any]:
        """The verdict on one run, as result.json keeps it under ``accept``.

        Args:
            metrics: the run's figures.
            reasons: why a figure is None.

        Raises ValueError for a bound on a metric that was not measured.
        """
        for bound in self.bounds:
            if bound.metric not in metrics:
                known = ", ".join(sorted(metrics))
                raise ValueError(f"accept reads {bound.metric}, but what is measured is {known}")
        told = [_told(b, metrics[b.metric], reasons.get(b.metric, "")) for b in self.bounds]
        missed = [bound["message"] for bound in told if not bound["met"]]
        return {
            "met": not missed,
            "seeds": self.seeds,
            "message": f"not accepted: {'; '.join(missed)}" if missed else "accepted",
            "bounds": told,
        }


def _told(bound: Bound, value: float | None, reason: str) -> dict[str, Any]:
    met = bound.met(value)
    why = f" ({reason})" if reason else ""
    said = f"{value:.4g}" if value is not None else f"null{why}, which does not count as met"
    return {
        "metric": bound.metric,
        "wanted": str(bound),
        "value": value,
        "met": met,
        "message": f"{bound.metric} is {said}; {bound} is wanted",
    }
