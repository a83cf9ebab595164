"""One task of an array: one stage instance, from its inputs to its verdict."""

import os
import time
from pathlib import Path

from expc_runtime.errors import CRASH, Preempted, StageError
from expc_runtime.state.plan import Task
from expc_runtime.state.records import Status, read_status
from expc_runtime.state.table import duration
from expc_runtime.sweep import ends, leash
from expc_runtime.sweep.book import Attempt, Book
from expc_runtime.sweep.slurm import queue
from expc_runtime.sweep.slurm.submission import Job, Submission, declared, digest, read_job
from expc_runtime.sweep.slurm.told import begun, note

__all__ = ["run"]

_GONE = 120.0  # seconds that Slurm may take to end a job that it has agreed to requeue
_MISSING = "missing_input"


def run(folder: Path, array: str, number: int, job: str) -> int:
    """Carry out task ``number`` of ``array`` in submission ``folder``, as ``job`` (ARRAY_TASK).

    Returns the exit code, 0 where dependants may run. What became of it is in the state files.
    """
    submission = Submission.read(folder)
    if submission is None:
        print(f"{folder}/submission.json cannot be read", flush=True)
        return CRASH
    if submission.before and not _rehearsed(Path(submission.before)):
        print(f"the smoke runs of {submission.before} did not end well; not started", flush=True)
        return CRASH
    book, work = Book(submission.layout), read_job(folder / f"{array}.jsonl", number)
    if book.proof(work.task) is not None:
        book.restore(work.task)
        return 0
    refusal = _edited(submission, work.task) or _hindered(book, work)
    if refusal is not None:
        print(f"{work.task.name}: {refusal.reason}", flush=True)
        book.refuse(
            work.task,
            refusal.state,
            reason=refusal.reason,
            failure=refusal.failure,
            by=refusal.by,
        )
        return CRASH
    return _work(submission, book, declared(work.task), job)


def _rehearsed(folder: Path) -> bool:
    smoke = Submission.read(folder)
    return smoke is not None and smoke.code == 0


def _edited(submission: Submission, task: Task) -> ends.Refusal | None:
    """Its key, and what others make of its result, belong to the module that was submitted."""
    module = task.argv[1]
    try:
        same = digest(module) == submission.modules[module]
    except StageError as error:
        return ends.Refusal("failed", str(error), failure=_MISSING)
    if same:
        return None
    why = "has changed since the sweep was submitted; run slurm.sh again when its jobs are through"
    return ends.Refusal("failed", f"{module} {why}", failure=_MISSING)


def _hindered(book: Book, work: Job) -> ends.Refusal | None:
    """What keeps the task from running; its parents are where it will look for them."""
    for parent in work.parents:
        state, label = ends.end(parent.task, book.root / parent.home)
        refusal = ends.hindrance(parent.task.stage, state, label)
        if refusal is not None:
            return refusal
        if parent.home != parent.task.name:
            point(book, parent.task, parent.home, state)
    return None


def point(book: Book, task: Task, home: str, state: str) -> None:
    """Have ``task`` point to the stage that runs its instance, unless it does."""
    old, new = read_status(book.root / task.name), read_status(book.root / home)
    told = new is not None and old is not None and old.label == new.label
    if not (told and old is not None and old.same_as == home and old.key == task.key):
        book.share(task, home, ends.written(state))


def _work(submission: Submission, book: Book, task: Task, job: str) -> int:
    """Attempt after attempt, until it is done, has failed for good, or goes back into the queue."""
    while True:
        try:
            attempt = book.begin(task)
        except StageError as error:
            print(f"{task.name}: {error.failure}: {error}", flush=True)
            return error.code
        status, asked = _attempt(book, attempt, job)
        took = duration(attempt.seconds)
        facts = {"run": task.run, "stage": task.stage}
        if status.state in ends.GOOD:
            note(submission, "done", f"{task.name}  {took}", **facts, state=status.state)
            return 0
        if status.state == "interrupted" and not _may_go_on(job, asked):
            return Preempted.code
        following = book.retry(attempt, status)
        if following.delay is None:
            text = f"{task.name}  {took}  {status.label}: {status.reason}"
            facts |= {"failure": status.failure, "reason": status.reason}
            note(submission, "failed", text, **facts)
            return status.code or CRASH
        print(f"{task.name}: {following.text}", flush=True)
        if status.state == "interrupted" and queue.standing(job).requeue:
            if queue.requeue(job):
                time.sleep(_GONE)  # Slurm ends this process; to end by itself would be to be done
            if asked:
                book.refuse(task, "interrupted", reason=status.reason)
                return Preempted.code
        time.sleep(following.delay)


def _attempt(book: Book, attempt: Attempt, job: str) -> tuple[Status, bool]:
    """One process, and whether Slurm asked it to stop."""
    begun(book.root, attempt.task, "running")
    ended = leash.run(
        book.command(attempt),
        book.log(attempt),
        env={"OMP_NUM_THREADS": _threads(attempt.task), **os.environ, "EXPC_JOB": f"slurm {job}"},
        timeout=attempt.task.policy.timeout,
        grace=float(os.environ.get("EXPC_GRACE", "60")),
    )
    status = book.verdict(attempt, ended.code, stopping=ended.asked, timed_out=ended.timed_out)
    begun(book.root, attempt.task, "pending")
    reason = f": {status.reason}" if status.reason else ""
    print(f"{attempt.task.name}: {status.label} (exit {ended.code}){reason}", flush=True)
    return status, ended.asked


def _threads(task: Task) -> str:
    """The share of the job's CPUs that each process of the stage has."""
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return str(max(1, int(cpus if cpus.isdigit() else 1) // task.policy.devices))


def _may_go_on(job: str, asked: bool) -> bool:
    """Whether a stage that was interrupted is ours to continue.

    A job that Slurm is ending is Slurm's: it comes back by itself if it was preempted, and does not
    if it was cancelled. One that was only signalled, such as before its time limit, goes back into
    the queue, if it may; here there is no time left for it.
    """
    state, requeue = queue.standing(job)
    return not asked or (state == "RUNNING" and requeue)
