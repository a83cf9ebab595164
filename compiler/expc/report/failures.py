"""What went wrong, once for each cause: reason, place in the spec, what was tried, the log's end, how to try again."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from expc.report.gather import Experiment, Run
from expc.report.text import tail
from expc_runtime.state.table import duration

__all__ = ["Failure", "Remark", "failures", "skipped", "warnings"]

_BAD = ("failed", "blocked", "undefined", "interrupted")
_MOST = 60  # causes that are told in full


@dataclass(frozen=True)
class Failure:
    """One cause, told of the first run that met it."""

    state: str
    label: str
    where: str
    reason: str
    source: str
    tried: str
    attempts: str
    log: str  # its path
    lines: str
    again: str  # commands
    others: tuple[str, ...]
    count: str


@dataclass(frozen=True)
class Remark:
    """Something that is true of several runs."""

    label: str
    text: str
    count: str
    runs: str


def failures(experiment: Experiment) -> Iterator[Failure]:
    """What failed, was blocked, is undefined or was cut short; equal causes are one, those with a log first."""
    causes: dict[tuple[str, str, str], list[Run]] = {}
    for run in experiment.runs:
        if run.status.state in _BAD and not run.same_as:
            first = run.status.reason.partition("\n")[0]
            causes.setdefault((run.stage, run.status.label, first), []).append(run)
    ranked = sorted(causes.values(), key=lambda runs: _BAD.index(runs[0].status.state))
    for runs in ranked[:_MOST]:
        yield _failure(runs, experiment)
    rest = [run for runs in ranked[_MOST:] for run in runs]
    if rest:
        names = tuple(f"{run.name}: {run.status.label}" for run in rest)
        told = f"{len(ranked) - _MOST} causes more"
        yield Failure("failed", told, "", "", "", "", "", "", "", "", names, "")


def _failure(runs: Sequence[Run], experiment: Experiment) -> Failure:
    run, status = runs[0], runs[0].status
    log = _log(run, experiment.root)
    said = tail(experiment.root / log) if log else []
    others = tuple(other.name for other in runs[1:])
    return Failure(
        state=status.state,
        label=status.label,
        where=run.name,
        reason=status.reason,
        source=status.source,
        tried=_tried(run),
        attempts=_attempts(run),
        log=log.as_posix() if log else "",
        lines=experiment.clean("\n".join(said)),
        again="\n".join(_again(run, experiment)) if status.state != "blocked" else "",
        others=others,
        count=f"and {len(others)} more for the same reason" if others else "",
    )


def _log(run: Run, root: Path) -> Path | None:
    """The console of the last attempt, else what the stage wrote itself."""
    if run.status.state == "blocked" or not run.began:
        return None
    names = [f"attempt-{run.status.attempt}.log", "log"]
    return next((run.folder / name for name in names if (root / run.folder / name).is_file()), None)


def _tried(run: Run) -> str:
    parts = [f"{name} {value}" for name, value in run.status.changed.items()]
    return ", ".join(parts)


def _attempts(run: Run) -> str:
    status = run.status
    if not status.attempt:
        return ""
    parts = ["1 attempt" if status.attempt == 1 else f"{status.attempt} attempts"]
    parts += [f"{count} spent on {failure}" for failure, count in status.tries.items()]
    if status.steps_target:
        parts.append(f"reached step {status.step:,} of {status.steps_target:,}")
    if status.seconds:
        parts.append(duration(status.seconds))
    if status.code is not None:
        parts.append(f"exit {status.code}")
    if status.job:
        parts.append(status.job)
    return ", ".join(parts)


def _again(run: Run, experiment: Experiment) -> Iterator[str]:
    """Through the sweep, which keeps the books; and by hand, which shows what happens."""
    if experiment.folder:
        yield f"expc run {shlex.quote(experiment.folder)} --only {shlex.quote(glob.escape(run.run))}"
    if run.argv:
        yield shlex.join(run.argv)


def skipped(runs: Sequence[Run]) -> Iterator[Remark]:
    """What was not to run, by its reason."""
    yield from _grouped(
        (run.status.label + " " + run.stage, run.status.reason, run)
        for run in runs
        if run.status.state == "skipped"
    )


def warnings(runs: Sequence[Run]) -> Iterator[Remark]:
    """What results warn of."""
    yield from _grouped(
        (run.stage, warning, run) for run in runs if not run.same_as for warning in run.warnings
    )


def _grouped(told: Iterator[tuple[str, str, Run]]) -> Iterator[Remark]:
    """Remarks with the same first line are one: what follows are a run's own figures."""
    found: dict[tuple[str, str], tuple[str, dict[str, None]]] = {}
    for label, text, run in told:
        _, runs = found.setdefault((label, text.partition("\n")[0]), (text, {}))
        runs[run.run] = None
    for (label, _), (text, runs) in found.items():
        names = list(runs)
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        count = "1 run" if len(names) == 1 else f"{len(names)} runs"
        yield Remark(label, text, count, ", ".join(names[:12]) + more)
