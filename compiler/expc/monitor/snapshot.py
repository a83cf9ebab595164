"""One moment of a sweep, as the monitor shows it and `--json` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from expc.monitor.estimate import Left
from expc_runtime.state.files import plain

BAD = frozenset({"failed", "blocked", "undefined"})
"""States of a stage that make `expc run` exit with 1."""


@dataclass(frozen=True)
class Runner:
    """The process that runs a sweep."""

    alive: bool | None
    """None: it is on another machine, or says nothing of itself."""
    pid: int
    host: str
    jobs: int
    age: float
    """Seconds since it last wrote."""
    job: str = ""
    """Of a cluster, instead of a process: ``slurm 123``, which is the last of its jobs."""


@dataclass(frozen=True)
class Running:
    """A stage that works, or says that it does."""

    run: str
    stage: str
    state: str
    """``running``, ``silent`` (no heartbeat for two minutes) or ``dead`` (its process is gone)."""
    heartbeat: float
    """Seconds since its last one."""
    step: int
    steps_target: int
    percent: int
    epoch: int
    rate: float | None
    """Steps a second; None before there is any."""
    left: float | None
    """Seconds, by its own pace."""
    seconds: float
    attempt: int
    changed: Mapping[str, Any]
    """Settings that a retry changed: name -> value now."""
    host: str
    pid: int
    job: str
    """Of a cluster, such as ``slurm 123_4``."""
    devices: str
    log: str
    last: str
    """Last line of its log."""

    @property
    def name(self) -> str:
        """``<run>/<stage>``."""
        return f"{self.run}/{self.stage}"


@dataclass(frozen=True)
class Failure:
    """A stage that failed, was cut short or has no answer."""

    run: str
    stage: str
    state: str
    """With its class: ``failed(diverged)``."""
    reason: str
    source: str
    attempt: int
    changed: Mapping[str, Any]
    code: int | None
    time: float
    """When, in seconds since the epoch; 0 where nothing says."""
    log: str


@dataclass(frozen=True)
class Again:
    """A stage that failed and waits for another attempt."""

    run: str
    stage: str
    attempt: int
    """The number of the last one."""
    changed: Mapping[str, Any]
    """Settings of the next one that are not the plan's."""
    reason: str

    @property
    def name(self) -> str:
        """``<run>/<stage>``."""
        return f"{self.run}/{self.stage}"


@dataclass(frozen=True)
class One:
    """The state of one stage of one run."""

    name: str
    """``<run>/<stage>``."""
    condition: str
    stage: str
    state: str
    label: str
    """The state with its class: ``failed(diverged)``."""


@dataclass(frozen=True)
class Outdated:
    """Results that an older program or older values left where the plan has something else."""

    count: int
    example: str
    spec: str


@dataclass(frozen=True)
class Snapshot:
    """One moment of a sweep. Times are seconds; ``time`` is since the epoch."""

    experiment: str
    folder: str
    state: str
    """``pending``, ``queued`` (in a cluster, nothing of it runs), ``running``, ``done``, ``failed``, ``interrupted``;
    ``gone``: its runner died."""
    time: float
    runner: Runner | None
    rehearsal: str
    """How far the smoke runs are with which a sweep begins; else empty."""
    runs: int
    stages: int
    counts: Mapping[str, int]
    """Stages by state: every state, in its order."""
    by_stage: Mapping[str, Mapping[str, int]]
    """The same for each stage of the spec, without the zeros."""
    eta: Left | None
    running: tuple[Running, ...]
    again: tuple[Again, ...]
    """What waits for another attempt."""
    failures: tuple[Failure, ...]
    """The latest first, ten at most."""
    outdated: Outdated | None
    trouble: str
    """Why the plan could not be read: what is on disk is all there is then."""
    each: tuple[One, ...] = ()
    """Every stage of every run, where they were asked for."""

    @property
    def ended(self) -> bool:
        """Nothing works on it any more."""
        return self.state in ("done", "failed", "interrupted", "gone")

    @property
    def bad(self) -> bool:
        """Something is not as it should be: what makes `expc run` exit with 1."""
        cut = self.state in ("gone", "interrupted")
        return cut or any(self.counts[state] for state in BAD)

    def json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        data = asdict(replace(self, each=()))
        del data["each"]
        return dict(plain(data))
