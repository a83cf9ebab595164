"""From the plan of a sweep to the jobs of Slurm."""

import argparse
import graphlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from expc_runtime.errors import CRASH, MissingInput
from expc_runtime.state.plan import Layout, Task, cover, records
from expc_runtime.sweep import ends
from expc_runtime.sweep.alone import alone
from expc_runtime.sweep.book import Book
from expc_runtime.sweep.console import Console
from expc_runtime.sweep.slurm import queue
from expc_runtime.sweep.slurm.options import Ask
from expc_runtime.sweep.slurm.settle import proved, selected, settle
from expc_runtime.sweep.slurm.submission import (
    Job,
    Parent,
    Submission,
    add,
    digest,
    keep,
    new_folder,
)
from expc_runtime.sweep.slurm.told import queued

__all__ = ["Stock", "submit"]

_LOOK = 2.0  # seconds between two looks at a submission that is waited for


@dataclass
class _Array:
    """The tasks of one stage, as many as an array may have."""

    stage: str
    number: int
    size: int = 0
    file: TextIO | None = None  # while its tasks are written

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.number}"


@dataclass
class Stock:
    """What is to be submitted: arrays in ``folder``, and the order among their stages.

    Args:
        folder: of the submission.
        book: what is settled already.
        limit: tasks that an array may have.
        homes: ``<run>/<stage>`` of each key that is proved done (`proved`).
    """

    folder: Path
    book: Book
    limit: int
    homes: dict[str, str]
    arrays: list[_Array] = field(default_factory=list)
    after: dict[str, set[str]] = field(default_factory=dict)  # stage -> its parents
    modules: dict[str, str] = field(default_factory=dict)
    runs: int = 0
    stages: int = 0
    settled: int = 0
    repeated: int = 0

    def take(self, stages: Iterable[Task]) -> None:
        """Write the tasks of each array that ``stages`` need; what is settled or hopeless is left out.

        Raises:
            MissingInput: there is none, or a module cannot be read.
        """
        hopeless: set[str] = set()  # keys of what does not run and lets nothing run
        earlier: dict[str, Task] = {}
        run = 0
        with ExitStack() as files:
            for task in stages:
                if task.index != run:
                    run, earlier = task.index, {}
                    self.runs += 1
                self.stages += 1
                earlier[task.stage] = task
                if not task.skip:
                    self._keep(task.argv[1])
                if not self._runs(task, hopeless):
                    continue
                parents = (Parent(earlier[p], self.homes[earlier[p].key]) for p in task.after)
                add(self._array(task, files), Job(task, tuple(parents)))
        if not self.runs:
            raise MissingInput("no run matches --only")

    def order(self) -> list[_Array]:
        """Parents first.

        Raises:
            MissingInput: stages wait for each other in a circle.
        """
        try:
            stages = list(graphlib.TopologicalSorter(self.after).static_order())
        except graphlib.CycleError as error:
            circle = " -> ".join(error.args[1])
            raise MissingInput(f"stages wait for each other: {circle}; use sweep.sh") from None
        return sorted(self.arrays, key=lambda array: (stages.index(array.stage), array.number))

    def _runs(self, task: Task, hopeless: set[str]) -> bool:
        """Whether ``task`` is to be run, and for no other run already."""
        result = None if task.skip else self.book.proof(task)
        if result is not None:
            self.settled += 1
            if ends.ended(result) not in ends.GOOD:
                hopeless.add(task.key)
        elif task.skip or self.book.kept(task):
            self.settled += 1
            hopeless.add(task.key)
        elif task.key in self.homes:
            self.repeated += 1
        elif any(key in hopeless for key in task.parents):
            hopeless.add(task.key)
        else:
            self.homes[task.key] = task.name
            return True
        self.homes.setdefault(task.key, task.name)
        return False

    def _array(self, task: Task, files: ExitStack) -> TextIO:
        """Where the next task of its stage is written."""
        array = next((a for a in reversed(self.arrays) if a.stage == task.stage), None)
        if array is None or array.size == self.limit:
            array = _Array(task.stage, array.number + 1 if array else 0)
            self.arrays.append(array)
            path = self.folder / f"{array.name}.jsonl"
            array.file = files.enter_context(path.open("w", encoding="utf-8"))
        array.size += 1
        self.after.setdefault(task.stage, set()).update(task.after)
        assert array.file is not None
        return array.file

    def _keep(self, module: str) -> None:
        if module not in self.modules:
            self.modules[module] = digest(module)
            keep(self.folder, module)

    def __str__(self) -> str:
        left = sum(array.size for array in self.arrays)
        rest = self.stages - left - self.settled - self.repeated
        words = [f"{left} to run", f"{self.settled} settled"]
        words += [f"{self.repeated} the same as another"] if self.repeated else []
        words += [f"{rest} that cannot run"] if rest else []
        return f"{self.runs} runs, {self.stages} stages: {', '.join(words)}"


def submit(layout: Layout, args: argparse.Namespace, jobs: BinaryIO, plan: BinaryIO) -> int:
    """Submit what is not proved done of ``plan``; returns the exit code.

    Args:
        args: ``only``, ``at_once``, ``smoke``, ``rehearse`` and ``wait``, as slurm.sh takes them.
        jobs: records ``STAGE OPTION...``, what its jobs ask for (`Ask`).

    Raises:
        Locked: a sweep or a submission of this experiment is not over.
        MissingInput: the plan cannot be read to its end.
        BadValue: Slurm takes no such job, or does not answer.
    """
    asks = {stage: Ask.read(words) for stage, *words in records(jobs)}
    with ExitStack() as held:
        for root in dict.fromkeys((layout.root, layout.smoked().root)):
            held.enter_context(alone(root, "submitting"))
        folder = new_folder(layout.root)
        with (folder / "plan").open("wb") as file:
            shutil.copyfileobj(plan, file)
        console = Console(1, layout.root / "sweep.log")
        sender = _Sender(layout, args, asks, console)
        before = sender.rehearse(folder) if args.rehearse else None
        submission = sender.send(folder, None, before=before)
    if submission is None:
        return settle(folder, console)
    _tell(submission, console)
    return _wait(folder, submission) if args.wait else 0


class _Sender:
    """Makes arrays of a plan and submits them."""

    def __init__(
        self,
        layout: Layout,
        args: argparse.Namespace,
        asks: Mapping[str, Ask],
        console: Console,
    ) -> None:
        self._layout = layout
        self._args = args
        self._asks = asks
        self._console = console
        self._limit = queue.array_limit()

    def rehearse(self, real: Path) -> Path | None:
        """Submit two updates of every module that has never run, if there are any."""
        smoked = self._layout.smoked()
        picked = cover(selected(real, smoked, self._args.only), self._layout)
        if not picked:
            return None
        folder = new_folder(smoked.root)
        shutil.copyfile(real / "plan", folder / "plan")
        (folder / "picked").write_text("\0".join(task.name for task in picked), encoding="utf-8")
        self.send(folder, picked, after=real)
        return folder

    def send(
        self,
        folder: Path,
        picked: Sequence[Task] | None,
        *,
        before: Path | None = None,
        after: Path | None = None,
    ) -> Submission | None:
        """Submit ``picked`` (None: the plan of ``folder``); None if there is nothing to run.

        Raises as `submit` does; what was submitted by then is cancelled.
        """
        layout = self._layout.smoked() if after else self._layout
        only = self._args.only
        book = Book(layout)

        def stages() -> Iterator[Task]:
            return iter(picked) if picked is not None else selected(folder, layout, only)

        stock = Stock(folder, book, self._limit, proved(book, stages()))
        stock.take(stages())
        submission = Submission(
            experiment=layout.experiment,
            folder=layout.folder,
            python=layout.python,
            smoke=layout.smoke,
            only=only,
            before=str(before or ""),
            after=str(after or ""),
            modules=stock.modules,
            notify=tuple(self._args.notify or ()),
        )
        submission.write(folder)
        what = "smoke runs first" if after else "Slurm"
        self._say("Submit", f"{layout.experiment}, {what}: {stock}")
        if not stock.arrays:
            return None
        queued(layout.root, stock.runs)
        try:
            return self._send(folder, stock, submission)
        except BaseException:
            found = Submission.read(folder) or submission
            queue.cancel(found.jobs)
            if before is not None and (smoke := Submission.read(before)) is not None:
                queue.cancel(smoke.jobs)
            raise

    def _send(self, folder: Path, stock: Stock, submission: Submission) -> Submission:
        first = self._first(submission)
        ids: dict[str, list[int]] = {}
        for array in stock.order():
            ask = self._asks.get(array.stage, Ask())
            parents = [job for stage in stock.after[array.stage] for job in ids.get(stage, ())]
            at_once = self._args.at_once or ask.at_once
            if at_once and array.number:  # chunks of a stage share its share of the cluster
                parents += ids[array.stage]
            words = ask.words(gpus=queue.gpus(ask.partition))
            words += self._common([*first, *parents], folder / f"{array.name}-%a.log")
            words += [f"--job-name={submission.experiment}:{array.stage}"]
            span = f"0-{array.size - 1}" + (f"%{at_once}" if at_once else "")
            job = queue.submit(
                [*words, f"--array={span}"], self._script("task", folder, array.name)
            )
            ids.setdefault(array.stage, []).append(job)
            arrays = {**submission.arrays, array.name: job}
            submission = replace(submission, arrays=arrays)
            submission.write(folder)
            self._say("Array", f"{array.stage}: job {job}, tasks {span}  {shlex.join(words)}")
        words = self._asks.get(stock.arrays[0].stage, Ask()).place()
        words += self._common([*first, *submission.arrays.values()], folder / "last.log")
        words += [f"--job-name={submission.experiment}:end", "--time=60", "--requeue"]
        last_job = queue.submit(words, self._script("settle", folder))
        submission = replace(submission, last=last_job)
        submission.write(folder)
        return submission

    def _first(self, submission: Submission) -> list[int]:
        """The job that tells whether the smoke runs ended well."""
        smoke = Submission.read(Path(submission.before)) if submission.before else None
        return [smoke.last] if smoke else []

    def _common(self, after: Sequence[int], log: Path) -> list[str]:
        words = [f"--output={log}", "--open-mode=append", "--export=ALL", "--chdir=."]
        if after:  # afterok would wait for ever once a task has failed
            words.append("--dependency=afterany:" + ":".join(map(str, after)))
        return words

    def _script(self, *words: str | Path) -> str:
        command = [self._layout.python, "-m", "expc_runtime.sweep.slurm", *map(str, words)]
        return f"#!/usr/bin/env bash\nexec {shlex.join(command)}\n"

    def _say(self, word: str, text: str) -> None:
        self._console.line(time.strftime("[%Y-%m-%d %H:%M:%S] ") + f"{word:<8}{text}")


def _tell(submission: Submission, console: Console) -> None:
    """How to follow, and how to end it."""
    jobs = " ".join(map(str, submission.arrays.values()))
    root = submission.layout.root
    console.line(
        f"Follow it:  expc status {root}, squeue --jobs {','.join(map(str, submission.jobs))}, "
        f"or {root}/sweep.log for the table at the end\n"
        f"Cancel it:  scancel {jobs}  (job {submission.last} then writes what is true)"
    )


def _wait(folder: Path, submission: Submission) -> int:
    """Wait for the last job and show what it wrote; returns the exit code of the sweep."""
    log = submission.layout.root / "sweep.log"
    shown = log.stat().st_size
    try:
        while True:
            time.sleep(_LOOK)
            left = queue.active([submission.last])
            found = Submission.read(folder)
            shown = _show(log, shown)
            if found is not None and found.code is not None:
                return found.code
            if not left:
                print("sweep: the last job was cancelled; run slurm.sh again to see what is left")
                return CRASH
    except KeyboardInterrupt:
        print("\nsweep: the jobs go on without being waited for", file=sys.stderr)
        return 130


def _show(log: Path, since: int) -> int:
    """Print what ``log`` holds beyond ``since`` bytes; returns where it ends."""
    with log.open("rb") as file:
        file.seek(since)
        text = file.read()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return since + len(text)
