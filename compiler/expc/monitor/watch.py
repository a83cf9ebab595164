"""Read the files of a sweep and say what they hold."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from expc.monitor.estimate import Took, Work, left
from expc.monitor.planned import Source
from expc.monitor.snapshot import BAD, Again, Failure, One, Outdated, Runner, Running, Snapshot
from expc_runtime.state.files import read_env, read_json
from expc_runtime.state.identity import SMOKE
from expc_runtime.state.plan import Task
from expc_runtime.state.process import alive
from expc_runtime.state.records import STATES, Result, Status, read_result, read_status
from expc_runtime.state.table import standing

SILENT = 120.0
"""Seconds without a heartbeat from which a stage is called silent. Nothing follows from it: a validation may be long."""
_FAILURES = 10
_SETTLED = frozenset({"done", "smoke", "failed", "blocked", "skipped", "undefined"})
_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
"""Escape sequences: colours of a log, titles of a terminal."""


@dataclass
class _Kept:
    """What was read of one stage, and of which files."""

    signs: tuple[object, ...]
    status: Status
    result: Result | None = None
    outdated: bool = False
    works: Status | None = None
    """What a process says that runs there, or did when it died; it may be of an older plan."""


@dataclass
class Watch:
    """Reads one experiment, again and again; files that did not change are not read again.

    With ``each`` every snapshot holds the state of every stage. Memory grows with the stages then, else with those
    that have begun.
    """

    source: Source
    each: bool = False
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def look(self, stages: Iterable[Task] | None = None) -> Snapshot:
        """The state of things now; ``stages`` are the tasks, if somebody has them already."""
        gathered = Gathered()
        for _ in self.through(self.source.tasks() if stages is None else stages, gathered):
            pass
        return self.told(gathered)

    def through(self, stages: Iterable[Task], gathered: Gathered) -> Iterator[Task]:
        """``stages``, each of them looked at on the way."""
        for task in stages:
            self._add(task, gathered)
            yield task

    def told(self, gathered: Gathered) -> Snapshot:
        """What was ``gathered``, beside what the runner says."""
        now, folder = time.time(), self.source.runs
        env = read_env(folder / "status.env")
        runner = _runner(folder, env, now)
        if runner is not None and runner.alive is False:  # its last word may be newer than `env`
            env = read_env(folder / "status.env")
        rehearsal, rehearser = _rehearsal(folder, now)
        if (job := _submitted(folder)) is not None:
            runner = job
        counts: dict[str, int] = {state: gathered.counts.get(state, 0) for state in STATES}
        jobs = (rehearser or runner).jobs if rehearser or runner else 0  # type: ignore[union-attr]
        running = tuple(sorted(gathered.running, key=lambda one: -one.seconds))
        failures = sorted(gathered.failures, key=lambda one: -one.time)
        outdated = None
        if gathered.outdated:
            outdated = Outdated(gathered.outdated, gathered.example, self.source.spec)
        return Snapshot(
            experiment=self.source.experiment,
            folder=str(folder),
            state="running" if rehearser else _state(env, runner, counts, running),
            time=now,
            runner=rehearser or runner,
            rehearsal=rehearsal,
            runs=gathered.runs,
            stages=sum(counts.values()),
            counts=counts,
            by_stage=gathered.by_stage,
            eta=left(gathered.work, jobs or max(1, len(running))),
            running=running,
            again=tuple(gathered.again),
            failures=tuple(failures[:_FAILURES]),
            outdated=outdated,
            trouble="; ".join(self.source.trouble),
            each=tuple(gathered.each),
        )

    def _add(self, task: Task, gathered: Gathered) -> None:
        kept = self._read(task)
        status = kept.status
        gathered.runs += task.index != gathered.index
        gathered.index = task.index
        gathered.counts[status.state] = gathered.counts.get(status.state, 0) + 1
        of_stage = gathered.by_stage.setdefault(task.stage, {})
        of_stage[status.state] = of_stage.get(status.state, 0) + 1
        if self.each:
            one = One(task.name, task.condition, task.stage, status.state, status.label)
            gathered.each.append(one)
        if kept.outdated:
            gathered.outdated += 1
            gathered.example = gathered.example or task.name
        if kept.works is not None:
            self._add_running(task, kept.works, gathered)
        if status.same_as or task.skip:
            return
        if status.state in ("failed", "interrupted", "undefined"):
            gathered.fail(_failure(task, status, self.source.runs))
        elif status.state == "pending" and status.attempt:
            changed, reason = dict(status.changed), clean(status.reason)
            waits = Again(task.run, task.stage, status.attempt, changed, reason)
            gathered.again.append(waits)
        elif status.state == "done" and kept.result is not None and kept.result.seconds:
            gathered.work.took.setdefault(task.stage, Took()).add(kept.result.seconds)
        if status.state in ("pending", "interrupted") and task.key not in gathered.seen:
            pending = gathered.work.pending
            pending[task.stage] = pending.get(task.stage, 0) + 1
            gathered.seen.add(task.key)

    def _add_running(self, task: Task, status: Status, gathered: Gathered) -> None:
        one = _running(task, status, self.source.runs)
        gathered.running.append(one)
        if one.state != "dead":
            gathered.work.running.append((one.stage, one.seconds, one.left))

    def _read(self, task: Task) -> _Kept:
        """Where ``task`` stands. A file that is torn or makes no sense counts as none."""
        name = task.name
        path = f"{self.source.runs}/{name}"  # of thousands of stages: no Path until one has changed
        signs = (task.key, _sign(f"{path}/status.json"), _sign(f"{path}/result.json"))
        kept = self._kept.get(name)
        if kept is not None and kept.signs == signs and kept.works is None:
            return kept
        if signs[1:] == (None, None):
            self._kept.pop(name, None)
            return _Kept(signs, Status(state="skipped" if task.skip else "pending"))
        folder = Path(path)
        try:
            kept = _standing(task, folder, self.source.runs, signs)
        except (TypeError, ValueError, AttributeError, KeyError, OSError):
            kept = _Kept(signs, Status())
        self._kept[name] = kept
        return kept


@dataclass
class Gathered:
    """What the stages say, one after the other."""

    runs: int = 0
    index: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    by_stage: dict[str, dict[str, int]] = field(default_factory=dict)
    each: list[One] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    seen: set[str] = field(default_factory=set)
    outdated: int = 0
    example: str = ""

    def fail(self, failure: Failure) -> None:
        """Keep the latest few."""
        self.failures.append(failure)
        if len(self.failures) > 10 * _FAILURES:
            self.failures = sorted(self.failures, key=lambda one: -one.time)[:_FAILURES]


def _standing(task: Task, folder: Path, root: Path, signs: tuple[object, ...]) -> _Kept:
    status, result = standing(task, root)  # a stage whose process is gone stands as interrupted
    raw = read_status(folder)
    if raw is not None and raw.gone:  # it may have ended, with its last word, between the two
        status, result = standing(task, root)
        raw = read_status(folder)
    works = raw if raw is not None and raw.state == "running" and result is None else None
    old = False
    if status.state == "pending" and not task.skip:
        there = read_result(folder)
        old = there is not None and there.key != task.key and there.state != "smoke"
    _check(status)
    return _Kept(signs, status, result, old, works)


def _check(status: Status) -> None:
    """Raises TypeError where figures are none, as in a file that somebody wrote by hand."""
    _ = status.step + status.steps_target + status.attempt + status.heartbeat + status.seconds
    _ = status.reason + status.source + status.failure + status.by + status.job


def _running(task: Task, status: Status, root: Path) -> Running:
    age = max(0.0, time.time() - status.heartbeat)  # another machine's clock may be ahead
    state = "dead" if status.gone else "silent" if age > SILENT else "running"
    rate = status.step / status.seconds if status.step and status.seconds else None
    rest = max(0, status.steps_target - status.step)
    log = root / task.name / f"attempt-{status.attempt}.log"
    return Running(
        run=task.run,
        stage=task.stage,
        state=state,
        heartbeat=round(age, 1),
        step=status.step,
        steps_target=status.steps_target,
        percent=status.percent,
        epoch=status.epoch,
        rate=rate,
        left=rest / rate if rate and status.steps_target else None,
        seconds=status.seconds or max(0.0, time.time() - status.began),
        attempt=status.attempt,
        changed=dict(status.changed),
        host=status.host,
        pid=status.pid,
        job=status.job,
        devices=status.devices,
        log=str(log) if log.is_file() else "",
        last=last_line(log),
    )


def _failure(task: Task, status: Status, root: Path) -> Failure:
    log = root / task.name / f"attempt-{status.attempt}.log"
    return Failure(
        run=task.run,
        stage=task.stage,
        state=status.label,
        reason=clean(status.reason),
        source=status.source,
        attempt=status.attempt,
        changed=dict(status.changed),
        code=status.code,
        time=status.heartbeat,
        log=str(log) if log.is_file() else "",
    )


def _runner(folder: Path, env: Mapping[str, str], now: float) -> Runner | None:
    """The runner that status.env names; its age is that of the file."""
    if not env:
        return None
    pid, host = _whole(env.get("runner_pid")), env.get("host", "")
    here = bool(pid) and host == socket.gethostname()
    try:
        age = max(0.0, now - (folder / "status.env").stat().st_mtime)
    except OSError:
        age = 0.0
    return Runner(
        alive=alive(pid, _whole(env.get("runner_start"))) if here else None,
        pid=pid,
        host=clean(host),
        jobs=_whole(env.get("jobs")),
        age=round(age, 1),
    )


def _submitted(folder: Path) -> Runner | None:
    """The jobs of a cluster that have not said yet what came of them."""
    numbers = [path.parent for path in folder.glob("slurm/*/submission.json")]
    if not numbers:
        return None
    latest = max(numbers, key=lambda path: _whole(path.name))
    told = read_json(latest / "submission.json") or {}
    job = told.get("last")
    if not isinstance(job, int) or not job or told.get("code") is not None:
        return None
    return Runner(None, 0, "", 0, 0.0, job=f"slurm {job}")


def _rehearsal(folder: Path, now: float) -> tuple[str, Runner | None]:
    """How far the smoke runs are that come before the first run, and who runs them."""
    smoke = folder.with_name(folder.name + SMOKE)
    env = {} if folder.name.endswith(SMOKE) else read_env(smoke / "status.env")
    if env.get("state") != "running":
        return "", None
    runner = _runner(smoke, env, now)
    if runner is None or not runner.alive or not _newer(smoke, folder):
        return "", None
    return f"{_whole(env.get('run_index'))} of {_whole(env.get('total_runs'))}", runner


def _newer(one: Path, other: Path) -> bool:
    """Whether ``one`` was written to after ``other``: a smoke sweep may also run beside it."""
    times = [_sign(folder / "status.env") for folder in (one, other)]
    return times[0] is not None and (times[1] is None or times[0] > times[1])


def _state(
    env: Mapping[str, str],
    runner: Runner | None,
    counts: Mapping[str, int],
    running: tuple[Running, ...],
) -> str:
    works = any(one.state != "dead" for one in running)
    said = env.get("state", "")
    if runner is not None and runner.job:
        return "running" if works else "queued"
    if said == "running" and runner is not None:
        return "gone" if runner.alive is False and not works else "running"
    if works:
        return "running"  # by hand, or by a cluster
    total = sum(counts.values())
    settled = sum(counts[state] for state in _SETTLED)
    if total and settled == total:
        return "failed" if any(counts[state] for state in BAD) else "done"
    return "interrupted" if said == "interrupted" or counts["interrupted"] else "pending"


def _sign(path: Path | str) -> tuple[int, int, int] | None:
    """What tells one version of a file from the next; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else 0


def last_line(log: Path) -> str:
    """The last line of ``log`` that says something, as it would look on a terminal; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    for line in reversed(text.split("\n")):
        parts = [said for part in line.split("\r") if (said := clean(part))]
        if parts and not parts[-1].startswith("$ "):
            return parts[-1]
    return ""


def clean(text: str) -> str:
    """``text`` without what would steer a terminal: a log may hold anything."""
    plain_text = _CODES.sub("", text)
    shown = (c if c == "\n" or c.isprintable() else " " for c in plain_text)
    return "".join(shown).strip()
