"""Whether an experiment has an answer, or a reason for having none, for every stage of every run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from expc.report.gather import Experiment, Run

__all__ = ["missing", "served"]

_SETTLED = ("done", "smoke")
_WITH_REASON = ("failed", "blocked", "skipped", "undefined", "interrupted")


def missing(experiment: Experiment) -> Iterator[str]:
    """What stands open though nobody works at it, and why that is all that can be said."""
    if not experiment.stages:
        yield f"{experiment.name}: nothing has run, and there is no plan of what should"
    busy = served(experiment.runs_folder)
    for run in experiment.runs:
        told = _open(run, busy)
        if told:
            yield f"{run.name}: {told}"


def _open(run: Run, busy: bool) -> str:
    status = run.status
    if status.state in _SETTLED or (status.state in _WITH_REASON and status.reason):
        return ""
    if status.state in _WITH_REASON:
        return f"{status.label}, and nothing says why"
    if status.state == "running":
        return ""  # a running stage that is gone is told as interrupted
    if busy or status.job:
        return ""  # its turn will come
    return (
        "not begun, and no sweep runs" if not run.began else "begun, but nothing says how it ended"
    )


def served(runs: Path) -> bool:
    """Whether a sweep runs in this folder: its lock is held by a process of this machine.

    The kernel's table is read where there is one: asking for the lock could hinder a sweep that is just starting.
    """
    path = runs / ".lock"
    try:
        file = path.stat()
    except OSError:
        return False
    try:
        table = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return _held(path)
    name = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    return any(name in line.split() and "FLOCK" in line for line in table.splitlines())


def _held(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
