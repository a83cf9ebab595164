"""What became of each attempt at a stage, written alike by a local sweep, by Slurm and by Ray."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expc_runtime.errors import Locked, failure_of
from expc_runtime.state.claim import clear_smoke, hold
from expc_runtime.state.files import append_line
from expc_runtime.state.plan import Layout, Task, proof
from expc_runtime.state.records import Result, State, Status, read_result, read_status, write_status

__all__ = ["Attempt", "Book"]

_DEATH = 1.0  # seconds that a run may outlive the launcher's client, killed in its place
_STOPPED = frozenset({75, 129, 130, 137, 143})  # exit codes of a stage that was asked to stop


@dataclass(frozen=True)
class Attempt:
    """One process that works on a stage."""

    task: Task
    number: int
    moved: Path | None = None  # where other work went that its folder held
    changed: Mapping[str, Any] = field(default_factory=dict)  # settings, by retries
    began: float = field(default_factory=time.time)  # seconds since the epoch, for people
    clock: float = field(default_factory=time.monotonic)  # the same moment, for durations

    @property
    def seconds(self) -> float:
        """Since it began, whatever happened to the wall clock."""
        return time.monotonic() - self.clock


class Book:
    """The state files of one sweep: every change of a stage's state that is not the stage's own.

    A driver asks `proof` and `kept` what is settled, and for the rest goes round ::

        attempt = book.begin(task)                          # StageError: nothing can be started
        code = run(book.command(attempt), output=book.log(attempt))
        status = book.verdict(attempt, code)
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.root = layout.root

    def proof(self, task: Task) -> Result | None:
        """The result that proves ``task`` done; a smoke run proves nothing about the next one."""
        result = proof(self.root / task.name, task.key)
        return None if result is None or result.state == "smoke" else result

    def kept(self, task: Task) -> bool:
        """Its gate was not met: running it again would change nothing."""
        status = read_status(self.root / task.name)
        same = status is not None and status.key == task.key and not status.same_as
        return same and status is not None and status.label == "failed(gate)"

    def begin(self, task: Task) -> Attempt:
        """Make the folder of ``task`` ready for another attempt.

        Raises:
            StageError: a process works there, or no folder can be made.
        """
        folder = self.root / task.name
        with hold(folder, task.key) as (status, moved):
            before = 0 if clear_smoke(folder) else status.attempt
            attempt = Attempt(task, before + 1, moved)
        self.event(task, "start", attempt=attempt.number)
        return attempt

    def command(self, attempt: Attempt) -> tuple[str, ...]:
        """What to run, from the project root."""
        return attempt.task.argv

    def log(self, attempt: Attempt) -> Path:
        """Where the process of ``attempt`` writes its output."""
        return self.root / attempt.task.name / f"attempt-{attempt.number}.log"

    def verdict(
        self, attempt: Attempt, code: int, *, stopping: bool = False, timed_out: bool = False
    ) -> Status:
        """Write and return what the status of an ended attempt is to say.

        Its own word counts where it had the time for one, and a result counts whatever the exit
        ``code``. ``stopping``: the driver has asked it to end; ``timed_out``: because its time was
        up.
        """
        task, result = attempt.task, proof(self.root / attempt.task.name, attempt.task.key)

        def status(old: Status) -> Status:
            claimed = old.key == task.key and old.attempt == attempt.number
            if result is not None:
                same = claimed and old.state == result.state
                return old if same else replace(_bare(old), state=result.state, key=task.key)
            if claimed and old.state in ("failed", "interrupted"):
                return old
            stopped = code == 75 or (stopping and code in _STOPPED)
            state: State = "interrupted" if stopped else "failed"
            failure = "" if stopped else "unproved" if code == 0 else failure_of(code)
            return replace(
                _bare(old),
                state=state,
                key=task.key,
                attempt=attempt.number,
                failure=failure,
                reason=self._reason(attempt, code),
                code=code,
                heartbeat=time.time(),
                seconds=max(old.seconds, attempt.seconds),
            )

        if code == Locked.code:  # the folder is another process's: it speaks there
            told = replace(status(Status()), attempt=attempt.number)
        else:
            told = self._write(task, status, patience=_DEATH)
        self.event(task, told.state, attempt=attempt.number, code=code, reason=told.reason)
        return told

    def share(self, task: Task, name: str, state: State) -> None:
        """Another run has this very instance, in ``<run>/<stage>`` ``name``: point to it.

        ``state`` is how that ended, where its folder does not say.
        """
        status = read_status(self.root / name) or Status(state=state)
        shared = replace(status, same_as=name, key=task.key, attempt=0, seconds=0.0, pid=0)
        self._write(task, lambda _: shared)
        self.event(task, "same", same_as=name)

    def refuse(
        self, task: Task, state: State, *, reason: str, failure: str = "", by: str = ""
    ) -> None:
        """Write why ``task`` is not started."""

        def status(old: Status) -> Status:
            key = task.key or old.key
            return replace(
                old, state=state, key=key, failure=failure, by=by, reason=reason, same_as=""
            )

        self._write(task, status)
        self.event(task, state, reason=reason)

    def event(self, task: Task, event: str, **values: object) -> None:
        """Add a line to events.jsonl."""
        record = {"time": time.time(), "run": task.run, "stage": task.stage, "event": event}
        append_line(self.root / "events.jsonl", record | values)

    def _reason(self, attempt: Attempt, code: int) -> str:
        if code == 0:
            other = read_result(self.root / attempt.task.name)
            if other is None:
                return "exit 0, but it wrote no result.json"
            return f"its result.json is of {other.key}, not of {attempt.task.key}: other parents?"
        if code > 128:
            with suppress(ValueError):
                return f"ended by {signal.Signals(code - 128).name}"
        return _last_line(self.log(attempt)) or f"exit {code}"

    def _write(
        self, task: Task, change: Callable[[Status], Status], patience: float = 0.0
    ) -> Status:
        """Rewrite the status of ``task``, unless a process holds its folder for ``patience`` seconds."""
        folder, until = self.root / task.name, time.monotonic() + patience
        while True:
            try:
                with hold(folder, task.key) as (old, _):
                    new = change(old)
                    if new != old:
                        write_status(folder, new)
                    return new
            except Locked:
                if time.monotonic() >= until:
                    return change(Status())
                time.sleep(0.02)


def _bare(status: Status) -> Status:
    """``status`` without what an earlier attempt said of its end."""
    return replace(status, failure="", reason="", source="", by="", same_as="", code=None, pid=0)


def _last_line(log: Path) -> str:
    """The last line of ``log`` that says something; a traceback ends in its exception."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
        return said[-1] if said else ""
    return ""
