"""The clerk of a sweep: knows the plan, decides what to start, writes the state files.

``python -m expc_runtime.sweep`` prints the path of ``sweep.bash``, which a generated sweep.sh
sources; that script owns the processes and runs this module for the rest. Standard library only.
"""

import argparse
import fcntl
import fnmatch
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from expc_runtime.errors import DiskFull, Locked, MissingInput, StageError, failure_of, known
from expc_runtime.state.claim import clear_smoke, hold
from expc_runtime.state.files import append_line, write_env
from expc_runtime.state.plan import Layout, Task, cover, proof, tasks
from expc_runtime.state.process import alive, process_start
from expc_runtime.state.records import Result, State, Status, read_result, read_status, write_status
from expc_runtime.state.table import duration, table, tally

__all__ = ["Clerk", "main"]

_TICK = 2.0  # seconds between two writes of status.env
_AHEAD = 256  # stages that may wait for others before the plan is read on
_DEATH = 1.0  # seconds that a run may outlive the launcher's client, killed in its place
_CONSOLE, _PLANS = 3, (4, 5, 6, 7)  # descriptors that sweep.bash opens for the clerk
_STOPPED = frozenset({75, 129, 130, 137, 143})  # exit codes of a stage that was asked to stop
_EXIT = {"INT": 130, "TERM": 143, "HUP": 129}
_GOOD = frozenset({"done", "smoke"})  # dependants may run
_BAD = frozenset({"failed", "blocked", "undefined", "interrupted"})  # the sweep exits 1


class _End(NamedTuple):
    """What became of a stage instance, and the stage (``<run>/<stage>``) whose folder says so."""

    state: str  # a state of status.json, or "stopped": done, but its gate stops the dependants
    name: str


@dataclass
class _Attempt:
    """One process that works on a stage."""

    task: Task
    number: int
    began: float
    pid: int = 0
    process: int = 0
    watch: int = -1  # a descriptor that turns readable when the process ends


@dataclass
class _Stock:
    """What the plan holds before anything starts."""

    runs: int = 0
    stages: int = 0
    settled: int = 0
    repeated: int = 0

    @property
    def left(self) -> int:
        return self.stages - self.settled - self.repeated

    def __str__(self) -> str:
        repeated = f", {self.repeated} the same as another" if self.repeated else ""
        counts = f"{self.left} to run, {self.settled} settled{repeated}"
        return f"{self.runs} runs, {self.stages} stages: {counts}"


class Pace:
    """How long is left, from the seconds that stages of each name took."""

    def __init__(self) -> None:
        self._took: dict[str, tuple[int, float]] = {}
        self._left: dict[str, int] = {}

    def expect(self, stage: str, count: int = 1) -> None:
        """``count`` more of ``stage`` are to come (or, below zero, are not)."""
        self._left[stage] = self._left.get(stage, 0) + count

    def took(self, stage: str, seconds: float) -> None:
        """One of ``stage`` is done, in ``seconds``."""
        count, total = self._took.get(stage, (0, 0.0))
        self._took[stage] = (count + 1, total + seconds)

    def left(self, jobs: int) -> float | None:
        """Seconds until all that is expected has run on ``jobs`` slots; None if none ever has."""
        count = sum(n for n, _ in self._took.values())
        if not count:
            return None
        mean = sum(total for _, total in self._took.values()) / count
        means = {stage: total / n for stage, (n, total) in self._took.items()}
        return sum(n * means.get(stage, mean) for stage, n in self._left.items()) / jobs


class Console:
    """Lines for a person on ``fd``, copied to a log; below them a bar if ``fd`` is a terminal.

    A quiet one writes the log alone.
    """

    def __init__(self, fd: int, log: Path, *, quiet: bool = False) -> None:
        self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) if quiet else fd
        self._log = log
        self._terminal = os.isatty(self._fd)
        self._bar = 0

    def line(self, text: str) -> None:
        clear = "\r" + " " * self._bar + "\r" if self._bar else ""
        self._bar = 0
        with suppress(OSError):  # nobody reads any more; the log and the state files go on
            os.write(self._fd, f"{clear}{text}\n".encode(errors="surrogateescape"))
        with self._log.open("a", encoding="utf-8", errors="surrogateescape") as log:
            log.write(text + "\n")

    def bar(self, text: str) -> None:
        if self._terminal:
            text = text[: os.get_terminal_size(self._fd).columns - 1]
            with suppress(OSError):
                os.write(self._fd, f"\r{text.ljust(self._bar)}".encode(errors="surrogateescape"))
            self._bar = len(text)


class Clerk:
    """Decides what runs next and records what became of it.

    Args:
        layout: where modules and runs lie.
        stages: gives the stages anew: once to take stock, once to run them, once for the table.
        send: takes one command for sweep.bash.
        quit: is called with the exit code when all is settled.
        console: where a person reads.
        jobs: stages that run at the same time.
        grace: seconds from TERM to KILL when the shell of the sweep has been killed.
    """

    def __init__(
        self,
        layout: Layout,
        stages: Callable[[], Iterator[Task]],
        *,
        send: Callable[[bytes], None],
        quit: Callable[[int], None],
        console: Console,
        jobs: int,
        grace: float = 60.0,
    ) -> None:
        self._layout = layout
        self._stages = stages
        self._send = send
        self._leave = quit
        self._console = console
        self._jobs = jobs
        self._grace = grace
        self._root = layout.root
        self._pace = Pace()
        self._stock = _Stock()
        self._tasks: Iterator[Task] = iter(())
        self._waiting: list[Task] = []
        self._running: dict[int, _Attempt] = {}
        self._ends: dict[str, _End] = {}  # by key
        self._counts: dict[str, int] = {}  # by state
        self._last = Task(0, "", "", "", "")
        self._launched = 0
        self._stopping = ""
        self._code: int | None = None  # exit code of the attempt that ended last
        self._began = time.monotonic()

    def start(self) -> None:
        """Take stock of the plan and start what there are slots for.

        Raises:
            MissingInput: the plan cannot be read to its end.
        """
        self._take_stock()
        self._line("Sweep", f"{self._layout.experiment}: {self._stock}")
        if self._stock.left > 1:
            self._send(b"launcher\n")
        self._tasks = self._stages()
        self._fill()

    def obey(self, line: str) -> None:
        """Take one message of sweep.bash."""
        word, *rest = line.split()
        if word == "started":
            attempt = self._running[int(rest[0])]
            self._watch(attempt, int(rest[1]))
        elif word == "again":
            self._command(int(rest[0]))
        elif word == "ended":
            attempt = self._running.pop(int(rest[0]))
            if attempt.watch >= 0:
                os.close(attempt.watch)
            self._ended(attempt, int(rest[1]))
            self._fill()
        elif word == "stop":
            self._stopping = rest[0]
            self._line("Stop", f"{rest[0]}: {len(self._running)} running, asked to save and end")
            self._fill()

    def watched(self) -> list[int]:
        """Descriptors that turn readable when a stage's process ends; see `look`."""
        return [a.watch for a in self._running.values() if a.watch >= 0]

    def look(self, watch: int) -> None:
        """Wake the shell: the process of ``watch`` has ended and is its to collect."""
        for attempt in self._running.values():
            if attempt.watch == watch:
                attempt.watch = -1
        os.close(watch)
        self._send(b"look\n")

    def _watch(self, attempt: _Attempt, pid: int) -> None:
        attempt.pid, attempt.process = pid, process_start(pid)
        # Bash restarts a blocking read after SIGCHLD. Where there is no pidfd, it looks each second.
        if hasattr(os, "pidfd_open"):
            try:
                attempt.watch = os.pidfd_open(pid)
            except OSError:
                self._send(b"look\n")  # ended already

    def refresh(self) -> None:
        """Write status.env from what the running stages say of themselves."""
        env = self._env("running")
        write_env(self._root / "status.env", env)
        cells = int(str(env["percent"])) * 30 // 100
        bar = f"[{'#' * cells}{'-' * (30 - cells)}] {env['percent']}% {env['run_name']}"
        steps = f"step={env['step']}/{env['steps_target']}"
        self._console.bar(f"{bar} ({env['run_index']}/{env['total_runs']}) {steps}")

    def orphaned(self) -> None:
        """End what runs: the shell that started it was killed and cannot any more."""
        for sign, wait in ((signal.SIGTERM, self._grace), (signal.SIGKILL, 5.0)):
            for attempt in self._running.values():
                with suppress(ProcessLookupError):
                    os.killpg(attempt.pid, sign)
            end = time.monotonic() + wait
            while self._alive() and time.monotonic() < end:
                time.sleep(0.1)
        self._stopping = "KILL"
        for attempt in self._running.values():
            self._ended(attempt, 137)
        self._running.clear()
        write_env(self._root / "status.env", self._env("interrupted"))

    def _alive(self) -> bool:
        return any(a.pid and alive(a.pid, a.process) for a in self._running.values())

    def _take_stock(self) -> None:
        stock, run = self._stock, 0
        expected: set[str] = set()
        for task in self._stages():
            stock.runs += task.index != run
            run = task.index
            stock.stages += 1
            result = None if task.skip else self._proof(task)
            if result is not None:
                stock.settled += 1
                self._pace.took(task.stage, result.seconds)
                self._ends.setdefault(task.key, _End(_state(result), task.name))
            elif task.skip or self._kept(task):
                stock.settled += 1
            elif task.key in expected or task.key in self._ends:
                stock.repeated += 1
            else:
                self._pace.expect(task.stage)
                expected.add(task.key)

    def _fill(self) -> None:
        """Start stages until the slots are full; say quit when all is settled."""
        while len(self._running) < self._jobs and not self._stopping:
            task = self._next()
            if task is None:
                break
            self._place(task)
        if self._running:
            self.refresh()
        else:
            self._quit()

    def _next(self) -> Task | None:
        """The next stage that need not wait for another one."""
        for place, task in enumerate(self._waiting):
            if not self._early(task):
                return self._waiting.pop(place)
        while len(self._waiting) < _AHEAD + self._jobs:
            following = next(self._tasks, None)
            if following is None or not self._early(following):
                return following
            self._waiting.append(following)
        return None

    def _early(self, task: Task) -> bool:
        """Whether a parent has not ended, or the same instance runs for another run."""
        if task.skip:
            return False
        busy = any(attempt.task.key == task.key for attempt in self._running.values())
        return busy or any(parent not in self._ends for parent in task.parents)

    def _place(self, task: Task) -> None:
        """Start ``task``, unless it is settled, shared, or cannot run."""
        if task.skip:
            self._refuse(task, "skipped", "Skip", reason=task.skip)
        elif (result := self._proof(task)) is not None:
            self._settle(task, _state(result))
        elif task.key in self._ends:
            self._share(task, self._ends[task.key])
        elif self._kept(task):
            self._settle(task, "failed")
        elif not self._hindered(task):
            self._launch(task)

    def _proof(self, task: Task) -> Result | None:
        """A smoke run proves nothing about the next one."""
        result = proof(self._root / task.name, task.key)
        return None if result is None or result.state == "smoke" else result

    def _kept(self, task: Task) -> bool:
        """Its gate was not met: running it again would change nothing."""
        status = read_status(self._root / task.name)
        same = status is not None and status.key == task.key and not status.same_as
        return same and status is not None and status.label == "failed(gate)"

    def _share(self, task: Task, end: _End) -> None:
        """Another run has this very instance: point to it."""
        status = read_status(self._root / end.name) or Status(state=_written(end.state))
        shared = replace(status, same_as=end.name, key=task.key, attempt=0, seconds=0.0, pid=0)
        self._write(task, lambda _: shared)
        self._event(task, "same", same_as=end.name)
        self._settle(task, end.state)

    def _hindered(self, task: Task) -> bool:
        """Whether a parent keeps ``task`` from running; recorded with the reason."""
        for stage, key in zip(task.after, task.parents, strict=True):
            state, name = self._ends[key]
            if state in _GOOD:
                continue
            if state == "stopped":
                reason = f"{stage} ended without meeting its gate"
                self._refuse(task, "skipped", "Skip", failure="gate", reason=reason)
            elif state == "skipped":
                self._refuse(task, "skipped", "Skip", failure="gate", reason=f"{stage} is skipped")
            else:
                status = read_status(self._root / name)
                label = status.label if status else state
                self._refuse(task, "blocked", "Blocked", by=stage, reason=f"{stage} is {label}")
            return True
        return False

    def _refuse(
        self, task: Task, state: State, word: str, *, reason: str, failure: str = "", by: str = ""
    ) -> None:
        def status(old: Status) -> Status:
            key = task.key or old.key
            return replace(
                old, state=state, key=key, failure=failure, by=by, reason=reason, same_as=""
            )

        self._write(task, status)
        self._event(task, state, reason=reason)
        self._line(word, f"{self._where(task)}: {reason}")
        if not task.skip:
            self._pace.expect(task.stage, -1)
        self._settle(task, state)

    def _settle(self, task: Task, state: str) -> None:
        self._last = task
        if task.key:
            self._ends.setdefault(task.key, _End(state, task.name))
        written = _written(state)
        self._counts[written] = self._counts.get(written, 0) + 1

    def _launch(self, task: Task) -> None:
        folder = self._root / task.name
        try:
            with hold(folder, task.key) as (status, moved):
                before = 0 if clear_smoke(folder) else status.attempt
                attempt = _Attempt(task, before + 1, time.time())
        except StageError as error:
            self._pace.expect(task.stage, -1)
            self._line("Failed", f"{self._where(task)}: {error.failure}: {error}")
            self._settle(task, "failed")
            return
        if moved:
            self._line("Aside", f"{self._where(task)} held other work, which is now {moved.name}")
        self._launched += 1
        self._running[self._launched] = attempt
        self._event(task, "start", attempt=attempt.number)
        again = f"  attempt {attempt.number}" if attempt.number > 1 else ""
        self._line("Start", f"{self._where(task)}{again}\n    {shlex.join(task.argv)}")
        self._command(self._launched)

    def _command(self, number: int) -> None:
        attempt = self._running[number]
        words = [str(self._log(attempt)), *attempt.task.argv]
        text = f"start {number} {len(words)}\n" + "".join(f"{word}\0" for word in words)
        self._send(text.encode(errors="surrogateescape"))

    def _log(self, attempt: _Attempt) -> Path:
        return self._root / attempt.task.name / f"attempt-{attempt.number}.log"

    def _ended(self, attempt: _Attempt, code: int) -> None:
        task, self._code = attempt.task, code
        seconds = time.time() - attempt.began
        self._pace.expect(task.stage, -1)
        result = proof(self._root / task.name, task.key)
        status = self._verdict(attempt, code, result)
        self._event(task, status.state, attempt=attempt.number, code=code, reason=status.reason)
        where = self._where(task)
        took = duration(seconds)
        if result is not None:
            self._pace.took(task.stage, seconds)
            odd = f"  (exit {code} after its result)" if code else ""
            self._line("Done", f"{where}  {took}{odd}{self._eta()}")
            self._settle(task, _state(result))
            return
        word = "Stopped" if status.state == "interrupted" else "Failed"
        self._line(word, f"{where}  {took}  {status.label} (exit {code}): {status.reason}")
        self._line("", f"    {self._log(attempt)}")
        self._settle(task, status.state)

    def _verdict(self, attempt: _Attempt, code: int, result: Result | None) -> Status:
        """What the attempt's status is to say: its own word where it had the time for one."""
        task = attempt.task

        def status(old: Status) -> Status:
            claimed = old.key == task.key and old.attempt == attempt.number
            if result is not None:
                same = claimed and old.state == result.state
                return old if same else replace(_bare(old), state=result.state, key=task.key)
            if claimed and old.state in ("failed", "interrupted"):
                return old
            stopped = code == 75 or (bool(self._stopping) and code in _STOPPED)
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
                seconds=max(old.seconds, time.time() - attempt.began),
            )

        if code == Locked.code:  # the folder is another process's: it speaks there
            return replace(status(Status()), attempt=attempt.number)
        return self._write(task, status, patience=_DEATH)

    def _reason(self, attempt: _Attempt, code: int) -> str:
        if code == 0:
            other = read_result(self._root / attempt.task.name)
            if other is None:
                return "exit 0, but it wrote no result.json"
            return f"its result.json is of {other.key}, not of {attempt.task.key}: other parents?"
        if code > 128:
            with suppress(ValueError):
                return f"ended by {signal.Signals(code - 128).name}"
        return _last_line(self._log(attempt)) or f"exit {code}"

    def _write(
        self, task: Task, change: Callable[[Status], Status], patience: float = 0.0
    ) -> Status:
        """Rewrite the status of ``task``, unless a process holds its folder for ``patience`` seconds."""
        folder, until = self._root / task.name, time.monotonic() + patience
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

    def _event(self, task: Task, event: str, **values: object) -> None:
        record = {"time": time.time(), "run": task.run, "stage": task.stage, "event": event}
        append_line(self._root / "events.jsonl", record | values)

    def _line(self, word: str, text: str) -> None:
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ") if word else ""
        self._console.line(f"{stamp}{word:<8}{text}" if word else text)

    def _where(self, task: Task) -> str:
        return f"{task.name} ({task.index}/{self._total})"

    @property
    def _total(self) -> int:
        return self._stock.runs

    def _eta(self) -> str:
        left = self._left()
        return f"  {duration(left)} left" if left else ""

    def _left(self) -> float | None:
        left = self._pace.left(self._jobs)
        if left is None:
            return None
        spent = sum(time.time() - attempt.began for attempt in self._running.values())
        return max(0.0, left - spent / self._jobs)

    def _env(self, state: str) -> dict[str, object]:
        attempt = next(iter(self._running.values()), None)
        task = attempt.task if attempt else self._last
        status = read_status(self._root / task.name) or Status()
        left = self._left()
        count = self._counts.get
        return {
            "run_name": task.run,
            "run_index": task.index,
            "total_runs": self._total,
            "step": status.step,
            "steps_target": status.steps_target,
            "percent": 100 if status.state in _GOOD else status.percent,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "state": state,
            "stage": task.stage,
            "condition": task.condition,
            "seed": task.seed,
            "exit_code": "" if self._code is None else self._code,
            "eta_s": "" if left is None else round(left),
            "pid": attempt.pid if attempt else "",
            "running_count": len(self._running),
            "done_count": count("done", 0) + count("smoke", 0),
            "failed_count": count("failed", 0),
            "blocked_count": count("blocked", 0),
            "skipped_count": count("skipped", 0),
            "undefined_count": count("undefined", 0),
        }

    def _quit(self) -> None:
        bad = any(self._counts.get(state) for state in _BAD)
        code = _EXIT[self._stopping] if self._stopping else int(bad)
        state = "interrupted" if self._stopping else "failed" if bad else "done"
        write_env(self._root / "status.env", self._env(state))
        self._console.line("\n" + table(self._stages(), self._root))
        counts = tally(self._counts)
        took = duration(time.monotonic() - self._began)
        self._line("End", f"{counts or 'nothing ran'} in {took}: {self._root}")
        self._leave(code)

    @property
    def failed(self) -> list[Task]:
        """Stages that failed or were cut short, not those that wait for them."""
        seen = (task for task in self._stages() if task.key in self._ends)
        ends = ("failed", "interrupted")
        return [task for task in seen if self._ends[task.key].state in ends]

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked it to end."""
        return bool(self._stopping)


def _state(result: Result) -> str:
    return "stopped" if result.stops else result.state


def _written(state: str) -> State:
    return "done" if state == "stopped" else state  # type: ignore[return-value]


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


def _list(layout: Layout, plan: BinaryIO, only: str) -> int:
    """Print the command of every stage instance once."""
    seen: set[str] = set()
    for task in tasks(plan, layout):
        if task.key not in seen and not task.skip and fnmatch.fnmatchcase(task.run, only):
            print(shlex.join(task.argv))
        seen.add(task.key)
    return 0


def _status(layout: Layout, plan: BinaryIO, only: str) -> int:
    """Print the table of what is there."""
    chosen = (task for task in tasks(plan, layout) if fnmatch.fnmatchcase(task.run, only))
    print(table(chosen, layout.root), end="")
    return 0


class _Sweep:
    """A sweep from its beginning to its exit code: a smoke run of what has never run, then the runs."""

    def __init__(self, layout: Layout, args: argparse.Namespace) -> None:
        self._layout = layout
        self._args = args
        self._plans = iter(_PLANS)
        self._launcher = False
        self._console = Console(_CONSOLE, layout.root / "sweep.log")
        self._clerk: Clerk | None = None
        self._smoke: BinaryIO | None = None  # holds the folder of the smoke runs
        self.over = False

    @property
    def clerk(self) -> Clerk:
        assert self._clerk is not None
        return self._clerk

    def start(self) -> None:
        """Begin; raises as `Clerk.start` does."""
        picked = self._unproved() if self._args.rehearse else []
        if picked:
            self._rehearse(picked)
        else:
            self._run()

    def _selected(self, layout: Layout) -> Iterator[Task]:
        """The tasks of the selected runs, which are counted from 1 among themselves.

        Raises MissingInput if there is none.
        """
        number = last = 0
        with open(next(self._plans), "rb") as plan:
            for task in tasks(plan, layout):
                if fnmatch.fnmatchcase(task.run, self._args.only):
                    number += task.index != last
                    last = task.index
                    yield task if number == last else replace(task, index=number)
        if not number:
            raise MissingInput(f"no run of {layout.experiment} matches {self._args.only}")

    def _unproved(self) -> list[Task]:
        return cover(self._selected(self._layout.smoked()), self._layout)

    def _rehearse(self, picked: list[Task]) -> None:
        root = self._layout.smoked().root
        root.mkdir(parents=True, exist_ok=True)
        self._smoke = (root / ".lock").open("ab")
        try:
            fcntl.flock(self._smoke, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Locked(f"{root} is in use by another sweep") from None
        began, modules = time.monotonic(), len({task.argv[1] for task in picked})

        named = "1 module" if modules == 1 else f"{modules} modules"

        def quit(code: int) -> None:
            clerk = self.clerk
            if clerk.stopping:
                self._say("End     stopped in the smoke runs; nothing else was started")
                self._quit(code)
            elif clerk.failed:
                self._refuse(clerk.failed, root)
            else:
                took = duration(time.monotonic() - began)
                self._say(f"Smoke   {named} ran two updates, {took}")
                self._run()

        self._say(f"Smoke   {named} that never ran: two updates first")
        quiet = Console(_CONSOLE, root / "sweep.log", quiet=True)
        self._begin(self._layout.smoked(), lambda: iter(picked), quit, quiet)

    def _refuse(self, failed: list[Task], root: Path) -> None:
        """A stage can't train two batches: say why, and start nothing."""
        once: dict[str, Task] = {}
        for task in failed:
            once.setdefault(task.key, task)  # runs may share it
        for task in once.values():
            status = read_status(root / task.name) or Status()
            source = f"\n    from {status.source}" if status.source else ""
            self._say(f"Smoke   {task.argv[1]}: {status.label}: {status.reason}{source}")
            self._console.line(f"    {root / task.name}")
        self._say("End     nothing was started; --no-smoke runs it all the same")
        self._quit(1)

    def _say(self, text: str) -> None:
        self._console.line(time.strftime("[%Y-%m-%d %H:%M:%S] ") + text)

    def _run(self) -> None:
        if self._smoke is not None:
            self._smoke.close()
        self._begin(self._layout, lambda: self._selected(self._layout), self._quit, self._console)

    def _begin(
        self,
        layout: Layout,
        stages: Callable[[], Iterator[Task]],
        quit: Callable[[int], None],
        console: Console,
    ) -> None:
        self._clerk = Clerk(
            layout,
            stages,
            send=self._send,
            quit=quit,
            console=console,
            jobs=self._args.jobs,
            grace=self._args.grace,
        )
        self._clerk.start()

    def _send(self, command: bytes) -> None:
        if command == b"launcher\n":
            if self._launcher:
                return
            self._launcher = True
        _send(command)

    def _quit(self, code: int) -> None:
        self._send(f"quit {code}\n".encode())
        self.over = True


def _serve(layout: Layout, args: argparse.Namespace) -> int:
    """Be the clerk of sweep.bash until it goes away."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the writers of the plan are our children
    sweep = _Sweep(layout, args)
    try:
        sweep.start()
        _listen(sweep)
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except (OSError, StageError) as error:
        told = known(error) or DiskFull(str(error))  # it reads and writes nothing but state
        print(f"sweep: {told}", file=sys.stderr)
        return told.code
    return 0


def _listen(sweep: _Sweep) -> None:
    """Pass on what the shell says until the sweep is over, or the shell is gone."""
    shell, rest = os.getppid(), b""
    while not sweep.over:
        ready = select.select([0, *sweep.clerk.watched()], [], [], _TICK)[0]
        for watch in ready:
            if watch != 0:
                sweep.clerk.look(watch)
        if 0 in ready:
            words = os.read(0, 1 << 16)
            if not words:
                break
            *lines, rest = (rest + words).split(b"\n")
            for line in lines:
                sweep.clerk.obey(line.decode())
        elif not ready and os.getppid() != shell:
            break
        elif not ready:
            sweep.clerk.refresh()
    if not sweep.over:
        sweep.clerk.orphaned()


def _send(command: bytes) -> None:
    with suppress(BrokenPipeError):  # the shell is gone; the end of stdin says so next
        while command:
            command = command[os.write(1, command) :]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        print(Path(__file__).with_name("sweep.bash"))
        return 0
    parser = argparse.ArgumentParser(prog="sweep", description="Called by sweep.bash.")
    parser.add_argument("mode", choices=["clerk", "list", "status"])
    parser.add_argument("experiment")
    parser.add_argument("folder")
    parser.add_argument("python")
    parser.add_argument("--only", default="*")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--grace", type=float, default=60.0)
    args = parser.parse_args(words)
    layout = Layout(args.experiment, args.folder, args.python, args.smoke)
    if args.mode == "clerk":
        return _serve(layout, args)
    show = _list if args.mode == "list" else _status
    try:
        return show(layout, sys.stdin.buffer, args.only)
    except MissingInput as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `| head` has seen enough
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
