"""The last job: what no array could write, and what a person reads of the whole."""

import fnmatch
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from expc_runtime.errors import CRASH
from expc_runtime.state.plan import Layout, Task, tasks
from expc_runtime.state.records import Status, read_status
from expc_runtime.state.table import duration, table, tally
from expc_runtime.sweep import ends
from expc_runtime.sweep.book import Attempt, Book
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.slurm import queue
from expc_runtime.sweep.slurm.submission import Submission, kept
from expc_runtime.sweep.slurm.task import point
from expc_runtime.sweep.slurm.told import finished, note

__all__ = ["proved", "selected", "settle"]

_CODES = {"TIMEOUT": 124, "OUT_OF_MEMORY": 71}  # else 137


def selected(folder: Path, layout: Layout, only: str) -> Iterator[Task]:
    """The tasks of the selected runs of a submission, which are counted from 1 among themselves."""
    number = last = 0
    with (folder / "plan").open("rb") as file:
        for task in tasks(file, layout, kept(folder)):
            if fnmatch.fnmatchcase(task.run, only):
                number += task.index != last
                last = task.index
                yield replace(task, index=number)


def proved(book: Book, stages: Iterable[Task]) -> dict[str, str]:
    """Key -> ``<run>/<stage>`` of the first of ``stages`` whose own folder proves it done."""
    homes: dict[str, str] = {}
    for task in stages:
        if task.skip or task.key in homes or book.proof(task) is None:
            continue
        status = read_status(book.root / task.name)
        if status is None or not status.same_as:
            homes[task.key] = task.name
    return homes


def settle(folder: Path, console: Console) -> int:
    """Write what became of every stage of submission ``folder``; returns the exit code of the sweep."""
    submission = Submission.read(folder)
    if submission is None:
        print(f"{folder}/submission.json cannot be read", flush=True)
        return CRASH
    book, began = Book(submission.layout), time.time()
    smoke = Submission.read(Path(submission.before)) if submission.before else None
    if smoke is not None and smoke.code != 0:
        _refused(Path(submission.before), smoke, console)
        note(submission, "end", "nothing was started", state="failed")
        replace(submission, code=CRASH).write(folder)
        return CRASH
    settling = _Settling(book, proved(book, _tasks(folder, submission)))
    for task in _tasks(folder, submission):
        settling.take(task)
    code = int(settling.bad)
    finished(book.root, settling.last, settling.state, settling.runs, settling.counts)
    text = table(_tasks(folder, submission), book.root)
    replace(submission, code=code).write(folder)
    console.line("\n" + text)
    took = duration(began - folder.joinpath("plan").stat().st_mtime)
    told = f"{tally(settling.counts) or 'nothing ran'} in {took}"
    _say(console, "End", f"{told}: {book.root}")
    if not submission.after:
        note(submission, "end", told, state=settling.state, **settling.counts)
    if submission.after and code:
        _cancel(Path(submission.after))
    return code


def _tasks(folder: Path, submission: Submission) -> Iterator[Task]:
    if not submission.after:
        return selected(folder, submission.layout, submission.only)
    chosen = set((folder / "picked").read_text(encoding="utf-8").split("\0"))
    whole = selected(folder, submission.layout, submission.only)
    return (task for task in whole if task.name in chosen)


def _cancel(folder: Path) -> None:
    """The arrays that wait for smoke runs which failed; their last job tells why."""
    if (waiting := Submission.read(folder)) is not None:
        queue.cancel(waiting.arrays.values())


def _refused(folder: Path, smoke: Submission, console: Console) -> None:
    """Say which stage can't train two batches."""
    root, once = smoke.layout.root, set()
    for task in _tasks(folder, smoke):
        status = read_status(root / task.name) or Status()
        if status.state in ("failed", "interrupted", "pending") and task.key not in once:
            once.add(task.key)
            source = f"\n    from {status.source}" if status.source else ""
            _say(console, "Smoke", f"{task.argv[1]}: {status.label}: {status.reason}{source}")
            console.line(f"    {root / task.name}")
    _say(console, "End", "nothing was started; --no-smoke runs it all the same")


def _say(console: Console, word: str, text: str) -> None:
    console.line(time.strftime("[%Y-%m-%d %H:%M:%S] ") + f"{word:<8}{text}")


class _Settling:
    """One pass over the plan, parents before dependants."""

    def __init__(self, book: Book, homes: dict[str, str]) -> None:
        self._book = book
        self._homes = homes  # key -> <run>/<stage> that runs the instance
        self.last = Task(0, "", "", "", "")
        self.counts: dict[str, int] = {}
        self.runs = 0

    @property
    def bad(self) -> bool:
        """Whether anything is not as it should be at the end of a sweep."""
        return bool((ends.BAD | {"pending", "running"}) & self.counts.keys())

    @property
    def state(self) -> str:
        """What status.env says of the sweep."""
        waits = {"pending", "interrupted", "running"} & self.counts.keys()
        return "interrupted" if waits else "failed" if self.bad else "done"

    def take(self, task: Task) -> None:
        """Have the folder of ``task`` say what is true."""
        self.runs, self.last = max(self.runs, task.index), task
        state = self._state(task)
        if task.key:
            self._homes.setdefault(task.key, task.name)
        written = ends.written(state)
        self.counts[written] = self.counts.get(written, 0) + 1

    def _state(self, task: Task) -> str:
        book, root = self._book, self._book.root
        if task.skip:
            return self._refuse(task, ends.Refusal("skipped", task.skip))
        home = self._homes.get(task.key, task.name)
        if home == task.name and book.proof(task) is not None:
            book.restore(task)
        state, _ = ends.end(task, root / home)
        if home != task.name:
            point(book, task, home, state)
            return state
        if state in ("pending", "blocked", "skipped") or not self._begun(task):
            refusal = self._hindrance(task)
            return self._refuse(task, refusal) if refusal is not None else "pending"
        return self._dead(task) if state == "running" else state

    def _begun(self, task: Task) -> bool:
        state, _ = ends.end(task, self._book.root / task.name)
        return state != "pending"

    def _hindrance(self, task: Task) -> ends.Refusal | None:
        for stage, key in zip(task.after, task.parents, strict=True):
            home = self._homes[key]
            parent = replace(task, stage=stage, key=key, skip="")
            state, label = ends.end(parent, self._book.root / home)
            refusal = ends.hindrance(stage, state, label)
            if refusal is not None:
                return refusal
        return None

    def _refuse(self, task: Task, refusal: ends.Refusal) -> str:
        state, reason, failure, by = refusal
        old = read_status(self._book.root / task.name) or Status()
        if (old.state, old.reason, old.failure, old.by) != refusal or old.key != task.key:
            self._book.refuse(task, state, reason=reason, failure=failure, by=by)
        return state

    def _dead(self, task: Task) -> str:
        """It says ``running``, and no job of the sweep runs any more: as Slurm says it ended."""
        old = read_status(self._book.root / task.name) or Status()
        slurm = queue.standing(old.job.removeprefix("slurm ")).state if old.job else ""
        attempt = Attempt(task, old.attempt)
        status = self._book.verdict(
            attempt,
            _CODES.get(slurm, 137),
            stopping=slurm.startswith("CANCELLED"),
            timed_out=slurm == "TIMEOUT",
        )
        reason = f"its job ended without a word{f' ({slurm})' if slurm else ''}"
        self._book.refuse(task, status.state, reason=reason, failure=status.failure)
        return status.state
