"""The clerk of a local sweep: decides what to start next, and where; sweep.bash starts it."""

import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from expc_runtime.errors import DiskFull, StageError
from expc_runtime.state.files import write_env
from expc_runtime.state.plan import Layout, Task, proof
from expc_runtime.state.process import alive, process_start
from expc_runtime.state.records import Result, State, Status, read_status
from expc_runtime.state.table import duration, table, tally
from expc_runtime.sweep.book import Attempt, Book
from expc_runtime.sweep.breaker import Breaker, Trip
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.ends import BAD, GOOD, ended, hindrance, written
from expc_runtime.sweep.pace import Pace
from expc_runtime.sweep.slots import Slot, Slots

__all__ = ["Clerk", "Notes"]

_AHEAD = 256  # stages that may wait for others before the plan is read on
_EXIT = {"INT": 130, "TERM": 143, "HUP": 129}
_NEVER = float("inf")
_UNFINISHED = 60.0  # seconds; older temporary files are nobody's
_ROOM = 5.0  # seconds for somebody to make room on a full disk


class Notes(Protocol):
    """Who is told what happens, beside the console (`expc_runtime.notify.Notifier`)."""

    def send(self, event: str, text: str, **facts: object) -> None: ...


class _End(NamedTuple):
    """What became of a stage instance, and the stage (``<run>/<stage>``) whose folder says so."""

    state: str  # a state of status.json, or "stopped": done, but its gate stops the dependants
    name: str


@dataclass(eq=False)
class _Process:
    """The process of an attempt."""

    attempt: Attempt
    slots: tuple[Slot, ...]
    deadline: float  # of the monotonic clock: when it is asked to end, then when it is killed
    late: bool = False  # its time is up
    pid: int = 0
    start: int = 0
    watch: int = -1  # a descriptor that turns readable when the process ends
    said: float = field(default_factory=time.monotonic)  # when a line last told of it


class _Later(NamedTuple):
    """A stage whose turn is at ``due`` of the monotonic clock; tried ``again``, rather not on ``avoid``."""

    due: float
    task: Task
    avoid: Slot | None = None
    again: bool = False


@dataclass
class _Stock:
    """What the plan holds before anything starts."""

    runs: int = 0
    stages: int = 0
    settled: int = 0
    repeated: int = 0
    devices: int = 1  # slots that a stage takes at most

    @property
    def left(self) -> int:
        return self.stages - self.settled - self.repeated

    def __str__(self) -> str:
        repeated = f", {self.repeated} the same as another" if self.repeated else ""
        counts = f"{self.left} to run, {self.settled} settled{repeated}"
        return f"{self.runs} runs, {self.stages} stages: {counts}"


@dataclass
class _Disk:
    """Whether the disk is full for good: two stages in a row say so, and nobody makes room."""

    root: Path
    free: int | None = None  # bytes, when the first of them said so
    reason: str = field(default="")

    def full(self, reason: str) -> None:
        free = shutil.disk_usage(self.root).free
        if self.free is not None and free < 2 * self.free + 1:
            self.reason = reason
        self.free = free

    def worked(self) -> None:
        self.free = None


class Clerk:
    """Decides what runs next and records what became of it.

    Args:
        layout: where modules and runs lie.
        stages: gives the stages anew: once to take stock, once to run them, once for the table.
        send: takes one command for sweep.bash.
        quit: is called with the exit code when all is settled.
        console: where a person reads.
        slots: where stages run.
        grace: seconds from TERM to KILL, of a stage whose time is up or whose shell was killed.
        notes: who is told what failed and what is done.
        runner: the process that the sweep lives as long as; our parent, if not given.
    """

    def __init__(
        self,
        layout: Layout,
        stages: Callable[[], Iterator[Task]],
        *,
        send: Callable[[bytes], None],
        quit: Callable[[int], None],
        console: Console,
        slots: Slots,
        grace: float = 60.0,
        notes: Notes | None = None,
        runner: int | None = None,
    ) -> None:
        self._layout = layout
        self._stages = stages
        self._send = send
        self._leave = quit
        self._console = console
        self._slots = slots
        self._grace = grace
        self._notes = notes
        self._root = layout.root
        self._book = Book(layout)
        self._disk = _Disk(layout.root)
        self._breaker = Breaker(slots)
        self._pace = Pace()
        self._stock = _Stock()
        self._tasks: Iterator[Task] = iter(())
        self._held: _Later | None = None  # next in turn; its slots are not free yet
        self._later: list[_Later] = []
        self._waiting: list[Task] = []
        self._running: dict[int, _Process] = {}
        self._ends: dict[str, _End] = {}  # by key
        self._counts: dict[str, int] = {}  # by state
        self._last = Task(0, "", "", "", "")
        self._launched = 0
        self._stopping = ""
        self._code: int | None = None  # exit code of the attempt that ended last
        self._began = time.monotonic()
        self._runner = os.getppid() if runner is None else runner
        self._runner_start = process_start(self._runner)
        self._quiet = _seconds(os.environ.get("EXPC_PROGRESS", ""), 60.0)

    def start(self) -> None:
        """Take stock of the plan and start what there are slots for.

        Raises:
            MissingInput: the plan cannot be read to its end.
        """
        self._clear()
        self._take_stock()
        self._breaker = Breaker(self._slots, keep=self._stock.devices)
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
            self._ended(process, int(rest[1]))
            self._fill()
        elif word == "stop":
            self._stopping = rest[0]
            self._line("Stop", f"{rest[0]}: {len(self._running)} running, asked to save and end")
            self._fill()
        elif word == "status":
            self._tell()

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

    @property
    def wait(self) -> float:
        """Seconds until `tick` has something to do."""
        now = time.monotonic()
        times = [later.due for later in self._later if later.due > now]  # else it waits for a slot
        times += [process.deadline for process in self._running.values()]
        return max(0.0, min(times, default=_NEVER) - now)

    def tick(self) -> None:
        """End what has had its time, and start what has waited for another try."""
        now = time.monotonic()
        if self._stopping:
            self._send(b"look\n")  # bash's own waiting is by the wall clock, which may be set back
        for number, process in self._running.items():
            if process.deadline <= now:
                self._hurry(number, process)
        if any(later.due <= now for later in self._later):
            self._fill()

    def _hurry(self, number: int, process: _Process) -> None:
        """Ask a stage whose time is up to save and end; kill it if it did not."""
        if process.late:
            process.deadline = _NEVER
            self._send(f"signal {number} KILL\n".encode())
            return
        process.late, process.deadline = True, time.monotonic() + self._grace
        limit = duration(process.attempt.task.policy.timeout or 0.0)
        self._line("Late", f"{self._where(process.attempt.task)}: {limit} are up; asked to save")
        self._send(f"signal {number} TERM\n".encode())

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
        self._write_env(env)
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

    def _write_env(self, env: dict[str, object]) -> None:
        with self._book.spared():
            write_env(self._root / "status.env", env)

    def _tell(self) -> None:
        """Say where things stand."""
        total = self._stock.stages
        settled = sum(self._counts.values())
        self._line("Status", f"{settled} of {total} settled: {tally(self._counts)}{self._eta()}")
        for process in self._running.values():
            status = read_status(self._root / process.attempt.task.name) or Status()
            where = "".join(f"  {slot.name}" for slot in process.slots)
            steps = f"step {status.step} of {status.steps_target or '?'}"
            took = duration(process.attempt.seconds)
            self._line("", f"    {self._where(process.attempt.task)}  {steps}  {took}{where}")
        for later in self._later:
            wait = duration(max(0.0, later.due - time.monotonic()))
            self._line("", f"    {self._where(later.task)}  tried again in {wait}")

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
            self._ended(process, 137)
        self._running.clear()
        self._breaker.settle()
        self._write_env(self._env("interrupted"))
        text = "its runner was killed; run it again to go on"
        self._line("End", f"{text}: {self._root}")
        self._note("end", text, None, state="interrupted", **self._counts)

    def _alive(self) -> bool:
        return any(p.pid and alive(p.pid, p.start) for p in self._running.values())

    def _clear(self) -> None:
        """Remove what killed clerks had not finished writing; a cluster's jobs write here too."""
        for temporary in self._root.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - temporary.stat().st_mtime > _UNFINISHED:
                    temporary.unlink()

    def _take_stock(self) -> None:
        stock, run = self._stock, 0
        expected: set[str] = set()
        for task in self._stages():
            stock.runs += task.index != run
            run = task.index
            stock.stages += 1
            if not task.skip and (wanted := self._wanted(task)) <= len(self._slots.all):
                stock.devices = max(stock.devices, wanted)
            result = None if task.skip else self._book.proof(task)
            if result is not None:
                stock.settled += 1
                self._pace.took(task.stage, result.seconds)
                self._ends.setdefault(task.key, _End(ended(result), task.name))
            elif task.skip or self._book.kept(task):
                stock.settled += 1
            elif task.key in expected or task.key in self._ends:
                stock.repeated += 1
            else:
                self._pace.expect(task.stage)
                expected.add(task.key)

    def _fill(self) -> None:
        """Start stages until the slots are full; say quit when all is settled."""
        while True:
            if self._book.full:
                self._no_room(self._book.full)
                self._book.full = ""
            while self._open and (turn := self._next()) is not None:
                self._held = None if self._place(turn) else turn
                if self._held:
                    break
            if self._open and not self._held and self._crowded and self._breaker.holds:
                self._breaker.settle()  # too many wait to hear whose failures these are
                continue
            if self._running or (self._later and not self._ending):
                self.refresh()
                return
            if not self._breaker.holds:
                break
            self._breaker.settle()
        self._quit()

    @property
    def _crowded(self) -> bool:
        """So many stages wait for others that the plan is not read on."""
        return len(self._waiting) >= _AHEAD + self._slots.jobs

    @property
    def _ending(self) -> bool:
        """Nothing more is started."""
        return bool(self._stopping or self._disk.reason)

    @property
    def _open(self) -> bool:
        return len(self._running) < self._slots.jobs and not self._ending

    def _next(self) -> _Later | None:
        """The next stage that need not wait for another one."""
        if self._held is not None:
            return self._held
        now = time.monotonic()
        due = min(self._later, key=lambda later: later.due, default=None)
        if due is not None and due.due <= now:
            self._later.remove(due)
            return due
        for place, task in enumerate(self._waiting):
            if not self._early(task):
                return _Later(now, self._waiting.pop(place))
        while not self._crowded:
            following = next(self._tasks, None)
            if following is None:
                return None
            if not self._early(following):
                return _Later(now, following)
            self._waiting.append(following)
        return None

    def _early(self, task: Task) -> bool:
        """Whether a parent has not ended, or the same instance is under way for another run."""
        if task.skip:
            return False
        busy = any(process.attempt.task.key == task.key for process in self._running.values())
        busy = busy or any(later.task.key == task.key for later in self._later)
        busy = busy or self._breaker.has(task.key)
        return busy or any(parent not in self._ends for parent in task.parents)

    def _place(self, turn: _Later) -> bool:
        """Start the task, unless it is settled, shared, or cannot run; False: its slots are not free."""
        task = turn.task
        if task.skip:
            self._refuse(task, "skipped", word="Skip", reason=task.skip)
        elif (result := self._proof(task)) is not None:
            self._settle(task, ended(result))
        elif task.key in self._ends:
            self._share(task, self._ends[task.key])
        elif self._book.kept(task):
            self._settle(task, "failed")
        elif not self._hindered(task):
            return self._launch(turn)
        return True

    def _proof(self, task: Task) -> Result | None:
        result = self._book.proof(task)
        if result is not None:
            with suppress(StageError):
                if back := self._book.restore(task):
                    self._line("Back", f"{self._where(task)} was done before, in {back.name}")
        return result

    def _hindered(self, task: Task) -> bool:
        """Whether a parent, or the machine, keeps ``task`` from running; recorded with the reason."""
        for stage, key in zip(task.after, task.parents, strict=True):
            state, name = self._ends[key]
            status = read_status(self._root / name)
            refusal = hindrance(stage, state, status.label if status else state)
            if refusal is not None:
                word = "Blocked" if refusal.state == "blocked" else "Skip"
                self._refuse(task, word=word, **refusal._asdict())
                return True
        wanted, there = self._wanted(task), len(self._slots.all)
        if wanted > there:
            reason = f"{task.stage} takes {wanted} GPUs, and there are {there}"
            self._refuse(task, "failed", word="Failed", failure="bad_value", reason=reason)
            return True
        return False

    def _wanted(self, task: Task) -> int:
        cpu = bool(self._slots.gpus) and task.planned().get("device") == "cpu"
        return self._slots.wanted(task.policy.devices, cpu=cpu)

    def _share(self, task: Task, end: _End) -> None:
        """Another run has this very instance: point to it."""
        self._book.share(task, end.name, written(end.state))
        self._settle(task, end.state)

    def _refuse(
        self, task: Task, state: State, *, word: str, reason: str, failure: str = "", by: str = ""
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
        name = written(state)
        self._counts[name] = self._counts.get(name, 0) + 1

    def _launch(self, turn: _Later) -> bool:
        task = turn.task
        slots = self._slots.take(self._wanted(task), turn.avoid)
        if slots is None:
            return False
        try:
            attempt = self._book.begin(task)
        except StageError as error:
            self._slots.give(slots)
            self._pace.expect(task.stage, -1)
            if isinstance(error, DiskFull):
                self._no_room(str(error))
                self._queue(task, _ROOM, turn.avoid)
                return True
            self._line("Failed", f"{self._where(task)}: {error.failure}: {error}")
            self._settle(task, "failed")
            return True
        if attempt.moved:
            aside = f"held other work, which is now {attempt.moved.name}"
            self._line("Aside", f"{self._where(task)} {aside}")
        if attempt.back:
            self._line("Back", f"{self._where(task)} goes on from what lay in {attempt.back.name}")
        if attempt.told and not turn.again:  # else it has just been said
            self._line("Changed", f"{self._where(task)} goes on with {attempt.told}, after a retry")
        self._launched += 1
        deadline = attempt.clock + (task.policy.timeout or _NEVER)
        self._running[self._launched] = _Process(attempt, slots, deadline)
        again = f"  attempt {attempt.number}" if attempt.number > 1 else ""
        where = "".join(f"  {slot.name}" for slot in slots if slot.gpu)
        command = shlex.join(self._book.command(attempt))
        self._line("Start", f"{self._where(task)}{again}{where}\n    {command}")
        self._command(self._launched)
        return True

    def _command(self, number: int) -> None:
        """Have it started: its GPUs, its threads, its log and its command."""
        process = self._running[number]
        words = [str(self._book.log(process.attempt)), *self._book.command(process.attempt)]
        devices = ",".join(slot.gpu for slot in process.slots if slot.gpu) or "-"
        threads = self._slots.threads(process.attempt.task.policy.devices)
        text = f"start {number} {len(words)} {devices} {threads}\n"
        text += "".join(f"{word}\0" for word in words)
        self._send(text.encode(errors="surrogateescape"))

    def _ended(self, process: _Process, code: int) -> None:
        attempt, task, self._code = process.attempt, process.attempt.task, code
        self._slots.give(process.slots)
        self._pace.expect(task.stage, -1)
        stopping = bool(self._stopping)
        status = self._book.verdict(attempt, code, stopping=stopping, timed_out=process.late)
        if (result := proof(self._root / task.name, task.key)) is not None:
            self._done(process, code, result)
            return
        word = "Stopped" if status.state == "interrupted" else "Failed"
        took = duration(attempt.seconds)
        text = f"{self._where(task)}  {took}  {status.label} (exit {code}): {status.reason}"
        self._line(word, text)
        self._line("", f"    {self._book.log(attempt)}")
        if status.state == "interrupted" and self._stopping:
            self._settle(task, status.state)
        else:
            self._try_again(process, status, text)
        if status.failure == "disk_full":
            self._no_room(status.reason)

    def _done(self, process: _Process, code: int, result: Result) -> None:
        attempt, task = process.attempt, process.attempt.task
        self._pace.took(task.stage, attempt.seconds)
        self._breaker.worked(process.slots, task.key, time.monotonic())
        self._disk.worked()
        odd = f"  (exit {code} after its result)" if code else ""
        text = f"{self._where(task)}  {duration(attempt.seconds)}{odd}"
        self._line("Done", f"{text}{self._eta()}")
        self._settle(task, ended(result))
        self._note("done", text, task, state=result.state)

    def _try_again(self, process: _Process, status: Status, text: str) -> None:
        """Have a failure tried again as the plan says, and blame the slot where it is to blame."""
        attempt, task = process.attempt, process.attempt.task
        again = None if self._ending else self._book.retry(attempt, status)
        retried = again is not None and again.delay is not None
        if again is not None and again.text:
            self._line("Retry" if retried else "Left", f"{self._where(task)}: {again.text}")
        if again is not None and again.delay is not None:
            avoid = process.slots[0] if process.slots and status.state == "failed" else None
            self._queue(task, again.delay, avoid)
        else:
            self._note("failed", text, task, failure=status.failure, reason=status.reason)
        if status.state == "interrupted":
            if not retried:
                self._settle(task, status.state)
            return
        settle = None if retried else (lambda: self._settle(task, status.state))
        if (slot := self._breaker.acquit(task, status.failure)) is not None:
            told = f"{slot.name} is back: {task.name} fails elsewhere as it failed there"
            self._line("Slot", told)
        trip = self._breaker.failed(process.slots, task, status.failure, attempt.clock, settle)
        if trip is not None:
            self._take_out(trip)

    def _queue(self, task: Task, delay: float, avoid: Slot | None) -> None:
        self._pace.expect(task.stage)
        self._later.append(_Later(time.monotonic() + delay, task, avoid, again=True))

    def _take_out(self, trip: Trip) -> None:
        """A slot is sick: what failed there is run again elsewhere."""
        tried = f"{len(trip.tasks)} run again elsewhere" if trip.tasks else "nothing is lost"
        told = (
            f"{trip.slot.name} is out: {trip.failure} 3 times in a row there, while "
            f"{trip.other.name} finished others; {tried}"
        )
        self._line("Slot", told)
        for task in trip.tasks:
            self._book.requeue(task, f"{trip.failure} on {trip.slot.name}, which is out; again")
            self._queue(task, 0.0, trip.slot)

    def _no_room(self, reason: str) -> None:
        """Start nothing more if the disk is full and stays so."""
        self._disk.full(reason)
        if self._disk.reason and not self._stopping:
            said = f"the disk is full ({self._disk.reason}); what has not begun is left"
            self._line("Stop", f"{said}: make room under {self._root} and start again")

    def _note(self, event: str, text: str, task: Task | None, **facts: object) -> None:
        if self._notes is not None:
            where = {"run": task.run, "stage": task.stage} if task else {}
            named = {"experiment": self._layout.experiment, **where}
            self._notes.send(event, f"{self._layout.experiment}: {text}", **named, **facts)

    def _line(self, word: str, text: str) -> None:
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ") if word else ""
        self._console.line(f"{stamp}{word:<8}{text}" if word else text)

    def _where(self, task: Task) -> str:
        return f"{task.name} ({task.index}/{self._stock.runs})"

    def _eta(self) -> str:
        left = self._left()
        return f"  {duration(left)} left" if left else ""

    def _left(self) -> float | None:
        left = self._pace.left(self._slots.jobs)
        if left is None:
            return None
        spent = sum(process.attempt.seconds for process in self._running.values())
        return max(0.0, left - spent / self._slots.jobs)

    def _env(self, state: str) -> dict[str, object]:
        process = next(iter(self._running.values()), None)
        task = process.attempt.task if process else self._last
        status = read_status(self._root / task.name) or Status()
        left = self._left()
        count = self._counts.get
        return {
            "run_name": task.run,
            "run_index": task.index,
            "total_runs": self._stock.runs,
            "step": status.step,
            "steps_target": status.steps_target,
            "percent": 100 if status.state in GOOD else status.percent,
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
            "jobs": self._slots.jobs,
            "host": socket.gethostname(),
            "runner_pid": self._runner,
            "runner_start": self._runner_start,
        }

    def _quit(self) -> None:
        bad = any(self._counts.get(state) for state in BAD) or bool(self._disk.reason)
        code = _EXIT[self._stopping] if self._stopping else int(bad)
        state = "interrupted" if self._stopping else "failed" if bad else "done"
        self._write_env(self._env(state))
        self._console.line("\n" + table(self._stages(), self._root))
        pending = self._stock.stages - sum(self._counts.values())
        counts = tally({**self._counts, **({"pending": pending} if pending else {})})
        took = duration(time.monotonic() - self._began)
        text = f"{counts or 'nothing ran'} in {took}"
        self._line("End", f"{text}: {self._root}")
        self._note("end", text, None, state=state, **self._counts)
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
