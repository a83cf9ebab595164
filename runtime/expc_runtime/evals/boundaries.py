"""Do the segment boundaries that a world model learned fall on events of its environment?

Figures, pictures and ``boundary_eval.json`` are of the same held-out episodes. The module is in
eval mode, in 32 bits, and sees each episode whole; boundaries are the posterior's.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from expc_runtime.evals.alignment import (
    NO_BOUNDARY,
    Alignment,
    alignment,
    delta_summary,
    permutation_p,
)
from expc_runtime.evals.episodes import Episode, Flags, event, frame_delta, held_out
from expc_runtime.evals.evaluate import Measured, Subject
from expc_runtime.evals.segments import Segments, segments
from expc_runtime.state import write_json

__all__ = ["BoundaryAlignment", "alignment"]

PICTURES = ("grid", "internal", "fired")
REPORT = "boundary_eval.json"
ALPHA = 0.05  # of all tests together
_TOO_MANY = 0.9  # READ more often than this is no segmentation
_FIGURES = (
    "event_rate",
    "event_at_boundary",
    "event_at_nonboundary",
    "lift_over_event_rate",
    "auc_read_prob",
    "perm_p_value",
    "periodic_baseline",
)


@dataclass(frozen=True)
class BoundaryAlignment:
    """Boundaries against ``events`` in the first ``episodes`` that the stage held out.

    ``reward`` is a reward that is not 0; ``frame_delta`` a frame that changed as much as
    ``percentile`` percent of the episode's; ``reward_or_delta`` either; the others are what the
    environment declared. ``permutations`` are the draws of the permutation test. ``pictures``
    are drawn of the first episode, over a window of ``length`` frames.

    Metrics: ``<event>.<figure>``, each a mean over the episodes that have it, but for
    ``perm_p_value``: one test that permutes frames within every episode. A mean of p-values is no
    p-value.

    Raises ValueError for what cannot be measured.
    """

    events: Sequence[str] = ("pad_enter", "frame_delta", "reward")
    percentile: float = 90.0
    permutations: int = 1000
    episodes: int = 4
    pictures: Sequence[str] = ("grid", "internal", "fired")
    length: int = 20

    def __post_init__(self) -> None:
        if not self.events or len(set(self.events)) != len(self.events):
            raise ValueError(f"events {', '.join(self.events)}: one at least, and each once")
        if not set(self.pictures) <= set(PICTURES):
            raise ValueError(
                f"pictures {', '.join(self.pictures)}: there are {', '.join(PICTURES)}"
            )
        if not 0 < self.percentile < 100:
            raise ValueError(f"percentile={self.percentile} is not between 0 and 100")
        for name, least in (("permutations", 1), ("episodes", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")

    def measure(self, subject: Subject) -> Measured:
        """Run the module over its episodes; leave the report and the pictures in the folder."""
        episodes = [
            _Episode.of(episode, segments(subject.module, episode, subject.device), self)
            for episode in held_out(subject.parent, self.episodes)
        ]
        metrics, reasons, floors = self._figures(episodes)
        warnings = list(self._warnings(subject, episodes, reasons))
        report = {
            "settings": {field.name: getattr(self, field.name) for field in fields(self)},
            "metrics": metrics,
            "reasons": reasons,
            "floors": floors,
            "warnings": warnings,
            "episodes": [episode.told() for episode in episodes],
        }
        write_json(subject.folder / REPORT, report, durable=True)
        return Measured(
            metrics=metrics,
            reasons=reasons,
            floors=floors,
            warnings=tuple(warnings),
            files=(REPORT, *self._draw(subject, episodes[0])),
            extra={"episodes": len(episodes), "frames": sum(len(e.source) for e in episodes)},
        )

    def _draw(self, subject: Subject, episode: "_Episode") -> list[str]:
        if not self.pictures:
            return []
        from expc_runtime.evals import pictures  # matplotlib is slow to import

        strip = pictures.Strip(episode.source, episode.segments, episode.flags)
        return [
            getattr(pictures, f"boundary_{name}")(strip, self.length, subject.folder).name
            for name in self.pictures
        ]

    def _figures(
        self, episodes: Sequence["_Episode"]
    ) -> tuple[dict[str, float | None], dict[str, str], dict[str, float]]:
        """Metrics, why one is None, and what they would be by chance."""
        metrics: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        floors: dict[str, float] = {}
        for name in self.events:
            found = [episode.aligned[name] for episode in episodes]
            for figure in _FIGURES:
                key = f"{name}.{figure}"
                metrics[key], why = _mean(found, figure)
                if why:
                    reasons[key] = why
            metrics[f"{name}.perm_p_value"] = permutation_p(
                [(e.segments.read, e.flags[name]) for e in episodes], self.permutations
            )
            floors |= self._floors(name, metrics)
        return metrics | _ratios(episodes, reasons), reasons, floors

    def _floors(self, name: str, metrics: Mapping[str, float | None]) -> dict[str, float]:
        """Boundaries that know nothing of the event; for p the smallest that the draws can give."""
        rate = metrics[f"{name}.event_rate"] or 0.0
        by_chance = {
            "event_at_boundary": rate,
            "event_at_nonboundary": rate,
            "lift_over_event_rate": 1.0,
            "auc_read_prob": 0.5,
            "perm_p_value": 1 / (self.permutations + 1),
            "periodic_baseline": rate,
        }
        return {f"{name}.{figure}": value for figure, value in by_chance.items()}

    def _warnings(
        self, subject: Subject, episodes: Sequence["_Episode"], reasons: Mapping[str, str]
    ) -> Iterator[str]:
        """What a reader of the figures must know. A first line is the same for all runs it is true of."""
        if len(episodes) < self.episodes:
            yield f"fewer episodes are held out than were asked for\n{len(episodes)} of {self.episodes}"
        dynamics: Any = subject.module.dynamics
        for episode in episodes:
            for head, own in _odd(episode.segments, dynamics):
                yield f"{head}\nepisode {episode.source.name}: {own}"
        for name in self.events:
            yield from self._event_warnings(name, episodes)
        floor, share = 1 / (self.permutations + 1), ALPHA / len(self.events)
        if floor > share:
            yield (
                "the permutation test has too few draws for as many events\n"
                f"its smallest p is {floor:.4f}, above {ALPHA:g} / {len(self.events)} = {share:.4f}"
            )
        if reasons:
            told = (f"{name}: {reason}" for name, reason in reasons.items())
            yield "figures without a value\n" + "\n".join(told)

    def _event_warnings(self, name: str, episodes: Sequence["_Episode"]) -> Iterator[str]:
        rates = [episode.aligned[name]["event_rate"] for episode in episodes]
        promised = 1 - self.percentile / 100
        if name == "frame_delta" and max(rates) > 1.5 * promised:
            yield (
                "frame_delta: ties at the percentile make far too many frames events\n"
                f"up to {max(rates):.3f} of an episode, where {promised:.3f} was meant"
            )
        without = sum(not rate for rate in rates)
        if without:
            never = "never happens" if without == len(episodes) else "is not in every episode"
            yield f"{name} {never}\n{without} of {len(episodes)} are without it"


@dataclass(frozen=True)
class _Episode:
    """One episode with what the module made of it and what that is worth."""

    source: Episode
    segments: Segments
    flags: Mapping[str, Flags]  # by event
    aligned: Mapping[str, Alignment]

    @classmethod
    def of(cls, source: Episode, found: Segments, asked: BoundaryAlignment) -> "_Episode":
        flags = {name: event(source, name, asked.percentile) for name in asked.events}
        aligned = {
            name: alignment(found.read, events, found.read_prob, asked.permutations)
            for name, events in flags.items()
        }
        return cls(source, found, flags, aligned)

    def told(self) -> dict[str, Any]:
        """The episode in the report."""
        found = self.segments
        return {
            "episode": self.source.name,
            "length": len(self.source),
            "return": float(self.source.reward.sum()),
            "boundary_count": int(found.read.sum()),
            "forced_count": int(found.forced.sum()),
            "boundary_ratio_eval": float(found.read.mean()),
            "boundary_ratio_train": found.train_ratio,
            "boundaries": np.flatnonzero(found.read).tolist(),
            "events": [{"event": name, **figures} for name, figures in self.aligned.items()],
            "delta_summary": delta_summary(frame_delta(self.source.image), found.read),
        }


def _mean(found: Sequence[Alignment], figure: str) -> tuple[float | None, str]:
    """Mean over the episodes that have the figure; None, and why, if none has."""
    values: list[float | None] = [one[figure] for one in found]  # type: ignore[literal-required]
    known = [value for value in values if value is not None]
    if known:
        return statistics.fmean(known), ""
    return None, "; ".join(sorted({one["reasons"][figure] for one in found}))


def _ratios(episodes: Sequence[_Episode], reasons: dict[str, str]) -> dict[str, float | None]:
    """How often READ is, when chosen and when drawn, and how much of it a limit made."""
    found = [episode.segments for episode in episodes]
    reads = sum(int(one.read.sum()) for one in found)
    drawn = [one.train_ratio for one in found if one.train_ratio is not None]
    if not reads:
        reasons["forced_ratio"] = NO_BOUNDARY
    if not drawn:
        reasons["boundary_ratio_train"] = "an episode of one frame has no statistics"
    return {
        "boundary_ratio_eval": statistics.fmean(float(one.read.mean()) for one in found),
        "boundary_ratio_train": statistics.fmean(drawn) if drawn else None,
        "forced_ratio": sum(int(one.forced.sum()) for one in found) / reads if reads else None,
    }


def _odd(found: Segments, dynamics: Any) -> Iterator[tuple[str, str]]:
    """Boundaries that are no segmentation, or not the detector's: what it is, and its figures."""
    n, k = len(found), int(found.read.sum())
    drawn = "" if found.train_ratio is None else f", {found.train_ratio:.3f} when drawn"
    if not k:
        likely = f", mean probability {found.read_prob.mean():.3f}{drawn}"
        yield "no frame is a boundary in eval mode", f"largest {found.read_prob.max():.3f}{likely}"
        return
    if k > _TOO_MANY * n:
        yield "nearly every frame is a boundary", f"{k} of {n}{drawn}"
    if forced := int(found.forced.sum()):
        yield "some boundaries are forced by a limit, not found", f"{forced} of {k}"
    gaps = np.diff(np.flatnonzero(found.read))
    limited = dynamics.force_scale > 0
    limit, number = int(dynamics.max_seg_len) if limited else 0, int(dynamics.max_seg_num)
    if limit > 1 and (k == (n - 1) // limit or (gaps.size and (gaps == limit).all())):
        yield "boundaries are as many, or as far apart, as max_seg_len makes them", f"{k}, {limit}"
    elif gaps.size > 1 and limit != gaps[0] != 1 and (gaps == gaps[0]).all():
        yield "boundaries are periodic", f"every {gaps[0]} frames"
    in_runs = int((gaps == 1).sum())
    if in_runs > k / 2 and k <= _TOO_MANY * n:
        # A permutation spreads them, so what a run meets by chance looks like more than chance.
        yield "boundaries come in runs, which makes the p-values too small", f"{in_runs} of {k}"
    if limited and k == number:
        yield "boundaries end at max_seg_num", f"the last at frame {np.flatnonzero(found.read)[-1]}"
    if found.sanitised:
        yield "the state is not finite and was sanitised", f"{found.sanitised} statistics"
