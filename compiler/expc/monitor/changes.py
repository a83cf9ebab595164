"""What is new between two looks at a sweep, as lines for a log."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from expc.monitor import words
from expc.monitor.snapshot import One, Running, Snapshot
from expc_runtime.state.table import duration

_EVERY = 60.0
"""Seconds between two lines that only say how far a stage is."""
_WORDS = {
    "done": "Done",
    "smoke": "Done",
    "failed": "Failed",
    "blocked": "Blocked",
    "skipped": "Skip",
    "undefined": "Unclear",
    "interrupted": "Stopped",
}


@dataclass
class Changes:
    """Told one snapshot after the other; the first time it says where things stand."""

    _before: Snapshot | None = None
    _labels: dict[str, str] = field(default_factory=dict)
    _said: dict[str, float] = field(default_factory=dict)
    """When a line last told of a stage, by name."""

    def lines(self, now: Snapshot) -> Iterator[str]:
        """What is new, with the time; nothing if nothing is."""
        before, self._before = self._before, now
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ", time.localtime(now.time))
        if before is None:
            self._labels = {one.name: one.label for one in now.each}
            yield from (stamp + line for line in words.header(now))
        else:
            yield from (stamp + line for line in self._moved(before, now))
        yield from (stamp + line for line in self._progress(now))
        if before is not None and before.state != now.state:
            yield from (stamp + line for line in words.header(now))

    def _moved(self, before: Snapshot, now: Snapshot) -> Iterator[str]:
        spent = {one.name: one.seconds for one in before.running}
        again = {one.name: one for one in now.again}
        reasons = {f"{one.run}/{one.stage}": one for one in now.failures}
        for one in now.each:
            old = self._labels.get(one.name, "pending")
            self._labels[one.name] = one.label
            if old == "running" and one.name in again:
                yield f"{'Again':<8}{words.waiting(again[one.name])}"
            if one.label == old or one.state in ("pending", "running"):
                continue
            took = f"  {duration(spent[one.name])}" if one.name in spent else ""
            yield f"{_WORDS[one.state]:<8}{one.name}{took}{_label(one)}"
            failure = reasons.get(one.name)
            for line in (failure.reason.partition("\n")[0], failure.log) if failure else ():
                if line:
                    yield f"            {line}"

    def _progress(self, now: Snapshot) -> Iterator[str]:
        here, new = socket.gethostname(), {}
        for one in now.running:
            said = self._said.get(_attempt(one))
            due = said is None or now.time - said >= _EVERY
            if due:
                yield f"{'Run':<8}{words.running(one, here)}"
            new[_attempt(one)] = now.time if due or said is None else said
        self._said = new


def _attempt(one: Running) -> str:
    return f"{one.name} {one.attempt} {one.state}"


def _label(one: One) -> str:
    return f"  {one.label}" if "(" in one.label or one.state == "undefined" else ""
