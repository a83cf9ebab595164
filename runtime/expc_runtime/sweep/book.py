"""What became of each attempt at a stage, written alike by a local sweep, by Slurm and by Ray."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expc_runtime.errors import NO_SPACE, TIMED_OUT, DiskFull, Locked, failure_of, known
from expc_runtime.state.claim import Held, clear_smoke, former, hold
from expc_runtime.state.files import append_line
from expc_runtime.state.plan import Layout, Task, proof
from expc_runtime.state.records import Result, State, Status, read_result, read_status, write_status
from expc_runtime.state.table import duration
from expc_runtime.sweep.policy import Again, again, told

__all__ = ["Attempt", "Book"]

_CAUSE = re.compile(
    r"^Root Cause .*?^ +exitcode +: (-?\d+)", re.MULTILINE | re.DOTALL
)  # as torchrun tells it
_TORCHRUN = re.compile(r"^[EW]\d+ .*torch/distributed/elastic/", re.MULTILINE)
_DEATH = 1.0  # seconds that a run may outlive the launcher's client, killed in its place
_STOPPED = frozenset({75, 129, 130, 137, 143})  # exit codes of a stage that was asked to stop


@dataclass(frozen=True)
class Attempt:
    """One process that works on a stage."""

    task: Task
    number: int
    step: int = 0  # where it goes on from
    changed: Mapping[str, Any] = field(default_factory=dict)  # settings in force, by retries
    moved: Path | None = None  # where other work went that its folder held
    back: Path | None = None  # where its own work was taken back from
    began: float = field(default_factory=time.time)  # seconds since the epoch, for people
    clock: float = field(default_factory=time.monotonic)  # the same moment, for durations

    @property
    def seconds(self) -> float:
        """Since it began, whatever happened to the wall clock."""
        return time.monotonic() - self.clock

    @property
    def told(self) -> str:
        """``precision=32 (was 16-mixed)``: what is not as planned."""
        planned = self.task.planned() if self.changed else {}
        return told({name: planned[name] for name in self.changed}, self.changed)


class Book:
    """The state files of one sweep: every change of a stage's state that is not the stage's own.

    A driver asks `proof` and `kept` what is settled, and for the rest goes round ::

        attempt = book.begin(task)                          # StageError: nothing can be started
        code = run(book.command(attempt), output=book.log(attempt))
        status = book.verdict(attempt, code)
        again = book.retry(attempt, status)                 # after again.delay seconds, begin(task)

    A disk without space stops no driver: what can't be written is left out, and ``full`` says so.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.root = layout.root
        self.full = ""  # why a file could not be written, once the disk is full

    def proof(self, task: Task) -> Result | None:
        """The result that proves ``task`` done; a smoke run proves nothing about the next one.

        It counts where it was set aside as well, since `restore` takes it back.
        """
        folder = self.root / task.name
        result = proof(folder, task.key)
        if result is None and (old := former(folder, task.key)) is not None:
            result = proof(old, task.key)
        return None if result is None or result.state == "smoke" else result

    def restore(self, task: Task) -> Path | None:
        """Take back what was done of ``task`` before its folder was another's; where it lay.

        A status is put right that a full disk or a kill kept from saying what the result proves.

        Raises:
            StageError: a process works in the folder.
        """
        folder = self.root / task.name
        if (result := proof(folder, task.key)) is not None:
            self._put_right(task, result)
            return None
        if former(folder, task.key) is None:
            return None
        with self._hold(task) as held:
            back = held.back
        if back is not None:
            self.event(task, "back", folder=back.name)
        return back

    def _put_right(self, task: Task, result: Result) -> None:
        status = read_status(self.root / task.name)
        if status is not None and (status.state, status.same_as) == (result.state, ""):
            return

        def told(old: Status) -> Status:
            return replace(_bare(old), state=result.state, key=task.key, reason=result.reason)

        self._write(task, told)

    def kept(self, task: Task) -> bool:
        """Its gate was not met: running it again would change nothing."""
        status = read_status(self.root / task.name)
        same = status is not None and status.key == task.key and not status.same_as
        return same and status is not None and status.label == "failed(gate)"

    def begin(self, task: Task) -> Attempt:
        """Make the folder of ``task`` ready for another attempt, with the settings last in force.

        Retries are counted anew where a stage had failed for good: somebody asks for it again.

        Raises:
            StageError: a process works there, no folder can be made, or the disk is full.
        """
        folder = self.root / task.name
        with self._hold(task) as held:
            status = held.status or Status()
            if clear_smoke(folder):
                status = Status()
            own = status.key == task.key and not status.same_as
            waits = own and status.state != "failed"
            if own and status.tries and not waits:
                write_status(folder, replace(status, tries={}))
            kept = status.changed if own and (waits or not self.layout.smoke) else {}
            planned = task.planned() if kept else {}
            changed = {name: value for name, value in kept.items() if name in planned}
            step = status.step if own else 0
            attempt = Attempt(task, status.attempt + 1, step, changed, held.moved, held.back)
        self.event(task, "start", attempt=attempt.number, **_if(changed=changed))
        return attempt

    def command(self, attempt: Attempt) -> tuple[str, ...]:
        """What to run, from the project root; with several devices, by torchrun."""
        task, changed = attempt.task, attempt.changed
        python, module, *flags = task.argv
        if changed and task.declared is not None:
            planned = task.planned()
            before = {name: planned[name] for name in changed}
            flags += task.declared.flags(changed)
            flags += ["--planned", json.dumps(before)]
        if task.policy.devices > 1:
            ranks = str(task.policy.devices)
            torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
            return (python, *torchrun, module, *flags)
        return (python, module, *flags)

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
        if code and task.policy.devices > 1:
            code = _first_rank(self.log(attempt)) or code

        def status(old: Status) -> Status:
            claimed = old.key == task.key and old.attempt == attempt.number
            if result is not None:
                same = claimed and old.state == result.state
                return old if same else replace(_bare(old), state=result.state, key=task.key)
            own = claimed and old.state in ("failed", "interrupted")
            if own and not (timed_out and old.state == "interrupted"):
                return old
            stopped = not timed_out and (code == 75 or (stopping and code in _STOPPED))
            state: State = "interrupted" if stopped else "failed"
            failure = "" if stopped else "unproved" if code == 0 else failure_of(code)
            return replace(
                _bare(old),
                state=state,
                key=task.key,
                attempt=attempt.number,
                failure="timed_out" if timed_out else failure,
                reason=_late(attempt, old) if timed_out else self._reason(attempt, code),
                code=TIMED_OUT if timed_out else code,
                heartbeat=time.time(),
                seconds=max(old.seconds, attempt.seconds),
            )

        if code == Locked.code:  # the folder is another process's: it speaks there
            told = replace(status(Status()), attempt=attempt.number)
        else:
            told = self._write(task, status, patience=_DEATH)
        self.event(
            task,
            told.state,
            attempt=attempt.number,
            code=code,
            **_if(failure=told.failure, reason=told.reason),
        )
        return told

    def retry(self, attempt: Attempt, status: Status) -> Again:
        """Whether ``attempt``, which ended with ``status``, is followed by another one.

        If so, the folder says ``pending`` until `begin`, and holds the settings that are in force.
        """
        task = attempt.task
        next_ = again(task, status, since=attempt.step)
        if next_.delay is None:
            if next_.text:
                self.event(task, "no retry", attempt=attempt.number, reason=next_.text)
            return next_
        self._pending(task, next_.text, changed=next_.changed, tries=next_.tries)
        self.event(
            task,
            "retry",
            attempt=attempt.number,
            failure=status.failure or "preempted",
            delay=round(next_.delay, 3),
            reason=next_.text,
            **_if(changed=dict(next_.changed)),
        )
        return next_

    def requeue(self, task: Task, reason: str) -> None:
        """Have ``task`` run again as if it had not failed: the machine is to blame, not the stage."""
        self._pending(task, reason, tries={})
        self.event(task, "requeued", reason=reason)

    def _pending(self, task: Task, reason: str, **values: Any) -> None:
        self._write(
            task,
            lambda old: replace(_bare(old), state="pending", key=task.key, reason=reason, **values),
            patience=_DEATH,
        )

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
        with self.spared():
            append_line(self.root / "events.jsonl", record | values)

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Around what is written beside the stages' own folders: a full disk is noted in ``full``."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.full = self.full or str(known(error))

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
                with self._hold(task) as held:
                    old = held.status or Status()
                    new = change(old)
                    if new != old:
                        write_status(folder, new)
                    return new
            except Locked:
                if time.monotonic() >= until:
                    return change(Status())
                time.sleep(0.02)
            except DiskFull:
                return change(read_status(folder) or Status())

    @contextmanager
    def _hold(self, task: Task) -> Iterator[Held]:
        """Its folder; raises `DiskFull`, noted in ``full``, where it can't be written."""
        try:
            with hold(self.root / task.name, task.key) as held:
                yield held
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.full = self.full or str(known(error))
            raise DiskFull(self.full) from error


def _late(attempt: Attempt, status: Status) -> str:
    limit = duration(attempt.task.policy.timeout or attempt.seconds)
    done = f"at step {status.step}" + (f" of {status.steps_target}" * bool(status.steps_target))
    return f"no end within {limit}; {done}"


def _if(**values: object) -> dict[str, object]:
    """Those that say something."""
    return {name: value for name, value in values.items() if value}


def _bare(status: Status) -> Status:
    """``status`` without what an earlier attempt said of its end."""
    return replace(status, failure="", reason="", source="", by="", same_as="", code=None, pid=0)


def _first_rank(log: Path) -> int:
    """The exit code of the rank that torchrun, which exits 1 itself, saw fail first; 0 if of none."""
    found = _CAUSE.search(_end_of(log))
    code = int(found[1]) if found else 0
    return 128 - code if code < 0 else code


def _last_line(log: Path) -> str:
    """The last line of ``log`` that says something; a traceback ends in its exception.

    What torchrun adds says nothing of why.
    """
    lines = _TORCHRUN.split(_end_of(log))[0].splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
    return said[-1] if said else ""


def _end_of(log: Path) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
        return file.read().decode(errors="replace")
    return ""
