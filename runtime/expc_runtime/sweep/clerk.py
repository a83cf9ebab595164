"""The clerk of a local sweep: decides what to start next, and where; sweep.bash starts it."""

import os
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from expc_runtime.errors import StageError
from expc_runtime.state.files import write_env
from expc_runtime.state.plan import Layout, Task, proof
from expc_runtime.state.process import alive, process_start
from expc_runtime.state.records import Result, State, Status, read_status
from expc_runtime.state.table import duration, table, tally
from expc_runtime.sweep.book import Attempt, Book
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.pace import Pace

__all__ = ["Clerk"]

_AHEAD = 256  # stages that may wait for others before the plan is read on
_EXIT = {"INT": 130, "TERM": 143, "HUP": 129}
_GOOD = frozenset({"done", "smoke"})  # dependants may run
_BAD = frozenset({"failed", "blocked", "undefined", "interrupted"})  # the sweep exits 1


class _End(NamedTuple):
    """What became of a stage instance, and the stage (``<run>/<stage>``) whose folder says so."""

    state: str  # a state of status.json, or "stopped": done, but its gate stops the dependants
    name: str


@dataclass
class _Process:
    """The process of an attempt."""

    attempt: Attempt
    pid: int = 0
    start: int = 0
    watch: int = -1  # a descriptor that turns readable when the process ends
    said: float = field(default_factory=time.monotonic)  # when a line last told of it


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
        self._book = Book(layout)
        self._pace = Pace()
        self._stock = _Stock()
        self._tasks: Iterator[Task] = iter(())
        self._waiting: list[Task] = []
        self._running: dict[int, _Process] = {}
        self._ends: dict[str, _End] = {}  # by key
        self._counts: dict[str, int] = {}  # by state
        self._last = Task(0, "", "", "", "")
        self._launched = 0
        self._stopping = ""
        self._code: int | None = None  # exit code of the attempt that ended last
        self._began = time.monotonic()
        self._shell = os.getppid()  # sweep.bash: as long as it lives, so does the sweep
        self._shell_start = process_start(self._shell)
        self._quiet = _seconds(os.environ.get("EXPC_PROGRESS", ""), 60.0)

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
            self._watch(self._running[int(rest[0])], int(rest[1]))
        elif word == "again":
            self._command(int(rest[0]))
        elif word == "ended":
            process = self._running.pop(int(rest[0]))
            if process.watch >= 0:
                os.close(process.watch)
            self._ended(process.attempt, int(rest[1]))
            self._fill()
        elif word == "stop":
            self._stopping = rest[0]
            self._line("Stop", f"{rest[0]}: {len(self._running)} running, asked to save and end")
            self._fill()

    def watched(self) -> list[int]:
        """Descriptors that turn readable when a stage's process ends; see `look`."""
        return [process.watch for process in self._running.values() if process.watch >= 0]

    def look(self, watch: int) -> None:
        """Wake the shell: the process of ``watch`` has ended and is its to collect."""
        for process in self._running.values():
            if process.watch == watch:
                process.watch = -1
        os.close(watch)
        self._send(b"look\n")

    def _watch(self, process: _Process, pid: int) -> None:
        process.pid, process.start = pid, process_start(pid)
        # Bash restarts a blocking read after SIGCHLD. Where there is no pidfd, it looks each second.
        if hasattr(os, "pidfd_open"):
            try:
                process.watch = os.pidfd_open(pid)
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
        if not self._console.terminal:
            self._tell_progress()

    def _tell_progress(self) -> None:
        """Now and then a line of each running stage, for who reads a log and not a bar."""
        for process in self._running.values():
            if self._quiet and time.monotonic() - process.said >= self._quiet:
                process.said = time.monotonic()
                attempt = process.attempt
                status = read_status(self._root / attempt.task.name) or Status()
                took = duration(attempt.seconds)
                steps = f"{status.percent}%  step={status.step}/{status.steps_target}"
                self._line("Run", f"{self._where(attempt.task)}  {steps}  {took}{self._eta()}")

    def orphaned(self) -> None:
        """End what runs: the shell that started it was killed and cannot any more."""
        for sign, wait in ((signal.SIGTERM, self._grace), (signal.SIGKILL, 5.0)):
            for process in self._running.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            end = time.monotonic() + wait
            while self._alive() and time.monotonic() < end:
                time.sleep(0.1)
        self._stopping = "KILL"
        for process in self._running.values():
            self._ended(process.attempt, 137)
        self._running.clear()
        write_env(self._root / "status.env", self._env("interrupted"))

    def _alive(self) -> bool:
        return any(p.pid and alive(p.pid, p.start) for p in self._running.values())

    def _take_stock(self) -> None:
        stock, run = self._stock, 0
        expected: set[str] = set()
        for task in self._stages():
            stock.runs += task.index != run
            run = task.index
            stock.stages += 1
            result = None if task.skip else self._book.proof(task)
            if result is not None:
                stock.settled += 1
                self._pace.took(task.stage, result.seconds)
                self._ends.setdefault(task.key, _End(_state(result), task.name))
            elif task.skip or self._book.kept(task):
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
        busy = any(p.attempt.task.key == task.key for p in self._running.values())
        return busy or any(parent not in self._ends for parent in task.parents)

    def _place(self, task: Task) -> None:
        """Start ``task``, unless it is settled, shared, or cannot run."""
        if task.skip:
            self._refuse(task, "skipped", "Skip", reason=task.skip)
        elif (result := self._book.proof(task)) is not None:
            self._settle(task, _state(result))
        elif task.key in self._ends:
            self._share(task, self._ends[task.key])
        elif self._book.kept(task):
            self._settle(task, "failed")
        elif not self._hindered(task):
            self._launch(task)

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

    def _share(self, task: Task, end: _End) -> None:
        """Another run has this very instance: point to it."""
        self._book.share(task, end.name, _written(end.state))
        self._settle(task, end.state)

    def _refuse(
        self, task: Task, state: State, word: str, *, reason: str, failure: str = "", by: str = ""
    ) -> None:
        self._book.refuse(task, state, reason=reason, failure=failure, by=by)
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
        try:
            attempt = self._book.begin(task)
        except StageError as error:
            self._pace.expect(task.stage, -1)
            self._line("Failed", f"{self._where(task)}: {error.failure}: {error}")
            self._settle(task, "failed")
            return
        if attempt.moved:
            aside = f"held other work, which is now {attempt.moved.name}"
            self._line("Aside", f"{self._where(task)} {aside}")
        self._launched += 1
        self._running[self._launched] = _Process(attempt)
        again = f"  attempt {attempt.number}" if attempt.number > 1 else ""
        command = shlex.join(self._book.command(attempt))
        self._line("Start", f"{self._where(task)}{again}\n    {command}")
        self._command(self._launched)

    def _command(self, number: int) -> None:
        attempt = self._running[number].attempt
        words = [str(self._book.log(attempt)), *self._book.command(attempt)]
        text = f"start {number} {len(words)}\n" + "".join(f"{word}\0" for word in words)
        self._send(text.encode(errors="surrogateescape"))

    def _ended(self, attempt: Attempt, code: int) -> None:
        task, self._code = attempt.task, code
        self._pace.expect(task.stage, -1)
        status = self._book.verdict(attempt, code, stopping=bool(self._stopping))
        where, took = self._where(task), duration(attempt.seconds)
        if (result := proof(self._root / task.name, task.key)) is not None:
            self._pace.took(task.stage, attempt.seconds)
            odd = f"  (exit {code} after its result)" if code else ""
            self._line("Done", f"{where}  {took}{odd}{self._eta()}")
            self._settle(task, _state(result))
            return
        word = "Stopped" if status.state == "interrupted" else "Failed"
        self._line(word, f"{where}  {took}  {status.label} (exit {code}): {status.reason}")
        self._line("", f"    {self._book.log(attempt)}")
        self._settle(task, status.state)

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
        spent = sum(process.attempt.seconds for process in self._running.values())
        return max(0.0, left - spent / self._jobs)

    def _env(self, state: str) -> dict[str, object]:
        process = next(iter(self._running.values()), None)
        task = process.attempt.task if process else self._last
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
            "pid": process.pid if process else "",
            "running_count": len(self._running),
            "done_count": count("done", 0) + count("smoke", 0),
            "failed_count": count("failed", 0),
            "blocked_count": count("blocked", 0),
            "skipped_count": count("skipped", 0),
            "undefined_count": count("undefined", 0),
            "jobs": self._jobs,
            "host": socket.gethostname(),
            "runner_pid": self._shell,
            "runner_start": self._shell_start,
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


def _seconds(text: str, default: float) -> float:
    """What an environment variable says; ``default`` where it says nothing that makes sense."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return default


def _state(result: Result) -> str:
    return "stopped" if result.stops else result.state


def _written(state: str) -> State:
    return "done" if state == "stopped" else state  # type: ignore[return-value]
