"""How well boundaries fall on events: rates, lift, rank AUC, a permutation test, a periodic baseline.

A figure that is not defined is None, and ``reasons`` says why: no boundary, no event, no other frame.
Every array is of one episode, (n,) frames long. Standard library and NumPy only.
"""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Alignment",
    "DeltaSummary",
    "alignment",
    "auc",
    "delta_summary",
    "periodic",
    "permutation_p",
]

Flags = NDArray[np.bool_]
Reals = NDArray[np.float64]

_SEED = 0  # of every permutation test, so that a figure is the same wherever it is computed

NO_BOUNDARY = "no frame is a boundary"
ALL_BOUNDARIES = "every frame is a boundary"
NO_EVENT = "no frame is an event"
ALL_EVENTS = "every frame is an event"


class Alignment(TypedDict):
    """Figures of one event in one episode; ``reasons`` names each None."""

    event_rate: float  # mean of the event over frames
    boundary_rate: float  # k / n
    event_at_boundary: float | None  # mean of the event over boundaries
    event_at_nonboundary: float | None
    lift_over_event_rate: float | None  # event_at_boundary / event_rate
    auc_read_prob: float | None  # of the score for the event
    perm_observed: float | None  # event_at_boundary, what the test is about
    perm_p_value: float | None
    perm_p_floor: float  # the smallest p that so many permutations can give
    periodic_baseline: float | None  # event_at_boundary of equally spaced boundaries
    reasons: dict[str, str]


class DeltaSummary(TypedDict):
    """How much more the picture changes at boundaries than elsewhere, in grey levels."""

    at_boundary: float | None
    at_nonboundary: float | None
    cohens_d: float | None
    reasons: dict[str, str]


def alignment(boundaries: Flags, events: Flags, score: Reals, permutations: int) -> Alignment:
    """Hold ``boundaries`` against ``events``, and ``score`` (the probability of READ) too.

    Args:
        boundaries, events: (n,) bool.
        score: (n,) real; larger means boundary.
        permutations: N, draws of the permutation test.

    Raises ValueError for arrays of different length, no frame, or no permutation.
    """
    n = _frames(boundaries, events, score)
    if permutations < 1:
        raise ValueError(f"{permutations} permutations: at least one is needed")
    k = int(boundaries.sum())
    rate = float(events.mean())
    at_boundary, why_not_at = (float(events[boundaries].mean()), "") if k else (None, NO_BOUNDARY)
    off, why_not_off = (float(events[~boundaries].mean()), "") if k < n else (None, ALL_BOUNDARIES)
    area, why_no_area = auc(events, score)
    lift = at_boundary / rate if at_boundary is not None and rate else None
    p = permutation_p([(boundaries, events)], permutations)
    reasons = {
        "event_at_boundary": why_not_at,
        "event_at_nonboundary": why_not_off,
        "lift_over_event_rate": why_not_at or ("" if rate else NO_EVENT),
        "auc_read_prob": why_no_area,
        "perm_observed": why_not_at,
        "perm_p_value": why_not_at,
        "periodic_baseline": why_not_at,
    }
    return Alignment(
        event_rate=rate,
        boundary_rate=k / n,
        event_at_boundary=at_boundary,
        event_at_nonboundary=off,
        lift_over_event_rate=lift,
        auc_read_prob=area,
        perm_observed=at_boundary,
        perm_p_value=p,
        perm_p_floor=1 / (permutations + 1),
        periodic_baseline=float(events[periodic(n, k)].mean()) if k else None,
        reasons={name: reason for name, reason in reasons.items() if reason},
    )


def permutation_p(episodes: Iterable[tuple[Flags, Flags]], permutations: int) -> float | None:
    """One-sided p of the events at the boundaries of all ``episodes`` together; None without any.

    Each pair is (boundaries, events) of one episode. A permutation draws as many distinct frames of
    each episode as it has boundaries, so that episodes of different rates are not mixed up:
    ``p = (#{drawn >= observed} + 1) / (N + 1)``. The draws are `numpy.random.default_rng(0)`'s.
    """
    random = np.random.default_rng(_SEED)
    observed, any_boundary = 0, False
    drawn = np.zeros(permutations, dtype=np.int64)
    for boundaries, events in episodes:
        k = int(boundaries.sum())
        if not k:
            continue
        any_boundary = True
        observed += int(events[boundaries].sum())
        # One `choice` a draw is three times faster here than shuffling an (N, n) array.
        drawn += [
            int(events[random.choice(events.size, size=k, replace=False)].sum())
            for _ in range(permutations)
        ]
    if not any_boundary:
        return None
    return (int((drawn >= observed).sum()) + 1) / (permutations + 1)


def auc(events: Flags, score: Reals) -> tuple[float | None, str]:
    """Area under the ROC curve of ``score`` for ``events``, or None and why there is none.

    Mann-Whitney's U over the number of pairs; ties share the mean of their ranks.
    """
    positives = int(events.sum())
    negatives = events.size - positives
    if not positives or not negatives:
        return None, ALL_EVENTS if positives else NO_EVENT
    if not np.isfinite(score).all():
        return None, "the score is not finite in every frame"
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    u = ranks[where][events].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives)), ""


def periodic(n: int, k: int) -> NDArray[np.intp]:
    """At most ``k`` frames of ``n``, equally spaced from frame 0: what a clock would mark.

    The period is ``n / k`` rounded to even at a half, at least 1.
    """
    return np.arange(0, n, max(1, round(n / k)))[:k]


def delta_summary(frame_delta: Reals, boundaries: Flags) -> DeltaSummary:
    """Means of ``frame_delta`` (n,) at and off ``boundaries``, and Cohen's d between them.

    ``d = difference / sqrt((var_at + var_off) / 2)``, variances with n - 1, 0 for one frame.
    """
    at, off = frame_delta[boundaries], frame_delta[~boundaries]
    spread = float(np.sqrt((_variance(at) + _variance(off)) / 2))
    why_not = NO_BOUNDARY if not at.size else ALL_BOUNDARIES if not off.size else ""
    if not (why_not or spread):
        why_not = "neither group varies"
    reasons = {
        "at_boundary": "" if at.size else NO_BOUNDARY,
        "at_nonboundary": "" if off.size else ALL_BOUNDARIES,
        "cohens_d": why_not,
    }
    return DeltaSummary(
        at_boundary=float(at.mean()) if at.size else None,
        at_nonboundary=float(off.mean()) if off.size else None,
        cohens_d=None if why_not else float((at.mean() - off.mean()) / spread),
        reasons={name: reason for name, reason in reasons.items() if reason},
    )


def _variance(values: Reals) -> float:
    return float(values.var(ddof=1)) if values.size > 1 else 0.0


def _frames(boundaries: Flags, events: Flags, score: Reals) -> int:
    if not boundaries.shape == events.shape == score.shape or boundaries.ndim != 1:
        shapes = f"{boundaries.shape}, {events.shape}, {score.shape}"
        raise ValueError(f"boundaries, events and score are of one episode (n,), not {shapes}")
    if not boundaries.size:
        raise ValueError("an episode without frames")
    return boundaries.size
