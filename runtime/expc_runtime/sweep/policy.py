"""Whether a stage is tried again, when, and with which settings changed."""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from expc_runtime.state.plan import Task
from expc_runtime.state.program import shown
from expc_runtime.state.records import Status

__all__ = ["Again", "again", "told"]

_STALLS = 3  # attempts in a row that were preempted and got no further
_STALLED = 5.0  # seconds after the first of them; doubled each time
_LONGEST = 3600.0  # seconds that a retry waits at most


class Again(NamedTuple):
    """What follows an attempt that did not end well."""

    delay: float | None  # seconds until the next one; None: there is none
    text: str = ""  # for people; empty where nothing was declared
    changed: Mapping[str, Any] = {}  # settings in force from then on
    tries: Mapping[str, int] = {}  # spent by then


def again(task: Task, status: Status, *, since: int) -> Again:
    """What follows ``status``, of an attempt that began at step ``since``.

    A failure is tried again as its class is declared in the plan, after a delay that doubles, give
    or take a quarter. Preemption is none: the stage goes on at once, if it got any further.
    """
    if status.state == "interrupted":
        return _go_on(status, since)
    failure, spent = status.failure, status.tries.get(status.failure, 0)
    retry = task.policy.retries.get(failure)
    if status.state != "failed" or retry is None or not retry.times:
        return Again(None)
    if spent >= retry.times:
        return Again(None, f"{failure}; tried again {_times(spent)} already")
    changed, moved = dict(status.changed), {}
    planned = task.planned()
    assert task.declared is not None  # a task with retries has a module
    for name, word in retry.changes:
        now = changed.get(name, planned[name])
        new = task.declared.changed(name, word, now)
        if _same(new, now) or (word == "half" and not new):
            continue
        changed[name], moved[name] = new, now
    if retry.changes and not moved:
        same = ", ".join(f"{n} is {shown(changed.get(n, planned[n]))}" for n, _ in retry.changes)
        return Again(None, f"{failure}; not tried again: {same} already")
    changed = {name: value for name, value in changed.items() if not _same(value, planned[name])}
    how = f" with {told(moved, {**planned, **changed})}" if moved else ""
    delay = _delay(retry.delay, spent)
    later = f" in {round(delay)} s" if delay >= 1 else ""
    tries = {**status.tries, failure: spent + 1}
    return Again(delay, f"{failure}; again{how}{later}", changed, tries)


def told(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``precision=32 (was 16-mixed)``, for each setting of ``before``."""
    return ", ".join(f"{n}={shown(now[n])} (was {shown(old)})" for n, old in before.items())


def _go_on(status: Status, since: int) -> Again:
    stalls = 0 if status.step > since else status.tries.get("preempted", 0) + 1
    if stalls > _STALLS:
        return Again(None, f"preempted {stalls} times without a step further")
    tries = {**status.tries, "preempted": stalls}
    delay = _delay(_STALLED, stalls - 1) if stalls else 0.0
    later = f"in {round(delay)} s" if stalls else "at once"
    return Again(delay, f"preempted at step {status.step}; goes on {later}", status.changed, tries)


def _delay(first: float, spent: int) -> float:
    """Jitter keeps runs that failed together from coming back together."""
    return min(_LONGEST, first * 2.0**spent * random.uniform(0.75, 1.25))


def _same(one: Any, other: Any) -> bool:
    """Lists are what JSON makes of tuples."""
    return bool(shown(one) == shown(other) or one == other)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
