"""The phrases that every view of a sweep shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from expc.monitor.estimate import Left
from expc.monitor.snapshot import Again, Failure, Running, Snapshot
from expc_runtime.state.table import duration, tally

_QUIET = 15.0
"""Seconds after which it is worth saying that a runner has not written."""


def state(snapshot: Snapshot) -> str:
    """What the sweep does, and who runs it: one line."""
    runner = snapshot.runner
    if snapshot.state == "gone" and runner is not None:
        return f"its runner is gone (process {runner.pid} on {runner.host}); run it again to go on"
    if snapshot.state == "queued" and runner is not None:
        return f"in the queue ({runner.job}); squeue says more"
    if snapshot.state == "pending":
        idle = snapshot.counts["pending"] + snapshot.counts["skipped"] == snapshot.stages
        return "not running; nothing has run" if idle else "not running"
    if snapshot.state == "interrupted":
        return "stopped; run it again to go on"
    if snapshot.state == "failed":
        return "ended with failures"
    if snapshot.state != "running":
        return snapshot.state
    words = ["running"]
    if runner is not None and runner.alive is False:
        words.append(f"though its runner is gone (process {runner.pid} on {runner.host})")
    elif runner is not None and runner.job:
        words.append(f"({runner.job} is the last of its jobs)")
    elif runner is not None and runner.pid:
        jobs = f", {runner.jobs} at a time" if runner.jobs > 1 else ""
        quiet = f", last word {duration(runner.age)} ago" if runner.age > _QUIET else ""
        words.append(f"(process {runner.pid} on {runner.host}{jobs}{quiet})")
    if snapshot.rehearsal:
        words.append(f"smoke runs first: {snapshot.rehearsal}")
    return " ".join(words)


def counts(snapshot: Snapshot) -> str:
    """``8 stages of 4 runs: 2 pending, 6 done``."""
    some = {state: n for state, n in snapshot.counts.items() if n}
    stages = f"{snapshot.stages:,} stage{'s' * (snapshot.stages != 1)}"
    runs = f"{snapshot.runs:,} run{'s' * (snapshot.runs != 1)}"
    return f"{stages} of {runs}: {tally(some)}" if some else "no stages"


def remaining(eta: Left) -> str:
    """``about 5 min 10 s left (4 min 02 s to 6 min 20 s)``."""
    low, high = duration(eta.low), duration(eta.high)
    spread = f" ({low} to {high})" if low != high else ""
    return f"about {duration(eta.seconds)} left{spread}"


def heartbeat(one: Running) -> str:
    """``running (heartbeat 4 s)``, ``silent 12 min 05 s``, ``dead (pid gone)``."""
    if one.state == "dead":
        return "dead (pid gone)"
    age = duration(one.heartbeat) if one.heartbeat >= 9.95 else f"{one.heartbeat:.0f} s"
    return f"silent {age}" if one.state == "silent" else f"running (heartbeat {age})"


def place(one: Running, here: str) -> str:
    """Where it runs, as far as that is not here: job, host, devices."""
    host = f"on {one.host}" if one.host and one.host != here else ""
    devices = f"GPU {one.devices}" if one.devices else ""
    return ", ".join(word for word in (one.job, host, devices) if word)


def pace(one: Running) -> str:
    """``step 320/640  12.3/s``."""
    steps = f"step {one.step:,}" + (f"/{one.steps_target:,}" if one.steps_target else "")
    return f"{steps}  {rate(one.rate)}" if one.rate else steps


def rate(value: float) -> str:
    """Steps a second, or a minute where they are slow."""
    if value >= 0.995:
        return f"{value:,.0f}/s" if value >= 99.5 else f"{value:.1f}/s"
    return f"{value * 60:.1f}/min"


def again(attempt: int, changed: Mapping[str, Any]) -> str:
    """``attempt 2, precision=32``; empty for a first attempt as planned."""
    number = f"attempt {attempt}" if attempt > 1 else ""
    settings = " ".join(f"{name}={value}" for name, value in changed.items())
    return ", ".join(word for word in (number, settings) if word)


def running(one: Running, here: str) -> str:
    """All of it in one line."""
    percent = f"{one.percent:3d}%  " if one.steps_target else ""
    left = f"{duration(one.left)} left" if one.left and one.state != "dead" else ""
    more = [left, heartbeat(one), place(one, here), again(one.attempt, one.changed)]
    return f"{one.name}  {percent}{pace(one)}  " + "  ".join(word for word in more if word)


def waiting(one: Again) -> str:
    """What waits for another attempt, and why there is one."""
    settings = " ".join(f"{name}={value}" for name, value in one.changed.items())
    more = [f"after attempt {one.attempt}", settings, one.reason.partition("\n")[0]]
    return f"{one.name}  runs again  " + "  ".join(word for word in more if word)


def ago(one: Failure, now: float) -> str:
    """``3 min 05 s ago``; empty where nothing says when."""
    return f"{duration(max(0.0, now - one.time))} ago" if one.time else ""


def failure(one: Failure, now: float) -> str:
    """What failed and when, without the reason."""
    more = [ago(one, now), again(one.attempt, one.changed)]
    return f"{one.run}/{one.stage}  {one.state}  " + "  ".join(word for word in more if word)


def outdated(snapshot: Snapshot) -> str:
    """Why what ran once is pending now; empty if that is not so."""
    old = snapshot.outdated
    if old is None:
        return ""
    results = (
        "1 result no longer counts" if old.count == 1 else f"{old.count:,} results no longer count"
    )
    ask = f"; why: expc plan {old.spec}" if old.spec else ""
    return f"{results}: an older program or older values left them, such as {old.example}{ask}"


def header(snapshot: Snapshot) -> Iterator[str]:
    """The lines above a table."""
    yield f"{snapshot.experiment}: {state(snapshot)}"
    eta = snapshot.eta
    told = eta is not None and snapshot.state == "running" and eta.seconds >= 1
    yield counts(snapshot) + (f"; {remaining(eta)}" if told and eta is not None else "")
    if line := outdated(snapshot):
        yield line
    if snapshot.trouble:
        yield f"the plan cannot be read, so this is what is on disk: {snapshot.trouble}"
