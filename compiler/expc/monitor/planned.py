"""The stage instances of an experiment: what its script plans, or what is on disk where there is none."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, cast

from expc_runtime.errors import MissingInput
from expc_runtime.state.files import read_json
from expc_runtime.state.identity import SMOKE
from expc_runtime.state.plan import Layout, Task, tasks
from expc_runtime.state.records import read_status

_LOCK = "expc.lock.json"


@dataclass(frozen=True)
class Source:
    """Where the stages of ``experiment`` are written down; ``script`` is None where nothing plans them."""

    root: Path
    experiment: str
    script: Path | None = None
    trouble: list[str] = field(default_factory=list)
    """What kept the plan from being read, the last time; the stages are then those on disk."""

    @cached_property
    def runs(self) -> Path:
        """Folder of the runs, as a person in the current folder would write it."""
        return Path(os.path.relpath(self.root / "runs" / self.experiment))

    @property
    def spec(self) -> str:
        """The spec behind the script, relative to the project root; empty if nothing says."""
        lock = read_json(self.script.parent / _LOCK) if self.script is not None else None
        return str((lock or {}).get("spec", ""))

    def tasks(self) -> Iterator[Task]:
        """Every stage of every run, in the order of the plan.

        Memory does not grow with the plan. A plan that breaks off midway gives what came before.
        """
        self.trouble.clear()
        if self.script is None or not self.script.is_file():
            yield from self.on_disk()
            return
        begun = False
        try:
            for task in self._of_plan(self.script):
                begun = True
                yield task
        except (MissingInput, OSError, SyntaxError, ValueError) as error:
            self.trouble.append(f"{self.script}: {error}")
        if self.trouble and not begun:
            yield from self.on_disk()

    def _of_plan(self, script: Path) -> Iterator[Task]:
        smoke = self.experiment.endswith(SMOKE)
        name = self.experiment.removesuffix(SMOKE)
        layout = Layout(name, str(script.parent), "python", smoke)
        words = ["bash", str(script), "--plan"]
        environment = {"PYTHON": sys.executable, **os.environ}
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for whoever watches
        ) as process:
            try:
                yield from tasks(cast("IO[bytes]", process.stdout), layout)  # type: ignore[arg-type]
            except MissingInput as error:
                process.kill()
                said = cast("IO[bytes]", process.stderr).read().decode(errors="replace").strip()
                raise MissingInput(said.splitlines()[-1] if said else str(error)) from None
            finally:
                process.kill()

    def on_disk(self) -> Iterator[Task]:
        """What has begun, whoever planned it."""
        folders = sorted(file.parent for file in self.runs.glob("*/*/status.json"))
        run, index = "", 0
        for folder in folders:
            status = None if ".was-" in folder.name else read_status(folder)
            if status is None:
                continue
            if folder.parent.name != run:
                run, index = folder.parent.name, index + 1
            condition, _, seed = run.rpartition("seed=")
            condition = condition.strip(",") or run
            yield Task(index, run, condition, seed, folder.name, key=status.key)


@dataclass
class Held:
    """The stages of a source, kept until its script or its lock is another file: a plan costs a process to read."""

    source: Source
    most: int = 100_000
    """Stages to keep; of a larger plan those on disk are watched."""
    _signs: object = None
    _tasks: list[Task] | None = None

    def tasks(self) -> list[Task]:
        """Every stage, or those that have begun where nothing plans them, or too much is planned."""
        script = self.source.script
        if script is None or not script.is_file():
            return list(self.source.on_disk())
        signs = (_sign(script), _sign(script.parent / _LOCK))
        if self._tasks is None or self._signs != signs or self.source.trouble:
            stages = itertools.islice(self.source.tasks(), self.most + 1)
            self._signs, self._tasks = signs, list(stages)
        if len(self._tasks) > self.most:
            return list(self.source.on_disk())
        return self._tasks


def _sign(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def sources(root: Path) -> Iterator[Source]:
    """Every experiment under runs/."""
    for folder in sorted((root / "runs").glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):
            yield Source(root, folder.name, script_of(root, folder.name))


def script_of(root: Path, experiment: str) -> Path | None:
    """The generated script that runs ``experiment``: of the folder whose lock names it."""
    name = experiment.removesuffix(SMOKE)
    usual = root / "generated" / name / "sweep.sh"
    if usual.is_file():
        return usual
    for lock in sorted((root / "generated").glob(f"*/{_LOCK}")):
        script = lock.parent / "sweep.sh"
        if (read_json(lock) or {}).get("experiment") == name and script.is_file():
            return script
    return None
