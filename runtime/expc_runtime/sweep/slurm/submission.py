"""What a submission keeps of itself, so that no later edit reaches its tasks.

``runs/<experiment>/slurm/<n>/``: ``submission.json`` (`Submission`), ``plan`` (the records of
sweep.sh), ``modules`` (copies of those that the plan names), one ``<stage>.<chunk>.jsonl`` for each array with a line for each of its tasks (`Job`),
and the logs of Slurm's own words, ``<stage>.<chunk>-<task>.log``.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TextIO

from expc_runtime.errors import Locked, MissingInput
from expc_runtime.state.files import plain, read_json, write_json
from expc_runtime.state.plan import Layout, Policy, Retry, Task
from expc_runtime.state.program import Declared, read_program
from expc_runtime.sweep.slurm import queue

__all__ = [
    "Job",
    "Parent",
    "Submission",
    "add",
    "declared",
    "digest",
    "keep",
    "kept",
    "latest",
    "new_folder",
    "read_job",
]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One call of slurm.sh."""

    experiment: str
    folder: str
    python: str
    smoke: bool = False
    only: str = "*"
    arrays: Mapping[str, int] = field(default_factory=dict)  # file of its tasks -> job
    last: int = 0  # the job that settles everything
    before: str = ""  # folder of the smoke submission that comes first
    after: str = ""  # folder of the submission that this one is the smoke of
    modules: Mapping[str, str] = field(default_factory=dict)  # path -> sha256
    notify: tuple[str, ...] = ()  # form, variable, events
    code: int | None = None  # exit code, once it is settled

    @property
    def layout(self) -> Layout:
        return Layout(self.experiment, self.folder, self.python, self.smoke)

    @property
    def jobs(self) -> list[int]:
        """Every job, the last one last."""
        return [*self.arrays.values(), *([self.last] if self.last else [])]

    def write(self, folder: Path) -> None:
        write_json(folder / "submission.json", asdict(self), durable=True)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The submission of ``folder``; None if there is none."""
        data = read_json(folder / "submission.json")
        if data is None:
            return None
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        return cls(**{**values, "notify": tuple(values.get("notify", ()))})


@dataclass(frozen=True)
class Parent:
    """A stage that a task takes from, and the stage (``<run>/<stage>``) that runs its instance."""

    task: Task
    home: str


@dataclass(frozen=True)
class Job:
    """One task of an array."""

    task: Task
    parents: tuple[Parent, ...] = ()


def new_folder(root: Path) -> Path:
    """Make the folder of the next submission under ``root``."""
    for number in itertools.count(_newest(root) + 1):
        folder = root / "slurm" / str(number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")


def latest(root: Path) -> tuple[Path, Submission] | None:
    """The newest submission under ``root``."""
    for number in range(_newest(root), 0, -1):
        folder = root / "slurm" / str(number)
        if (found := Submission.read(folder)) is not None:
            return folder, found
    return None


def refuse_queued(root: Path) -> None:
    """Raise `Locked` where jobs of the last submission under ``root`` wait or run.

    Raises BadValue if there may be some and Slurm does not answer.
    """
    found = latest(root)
    if found is None or found[1].code is not None:
        return
    submission = found[1]
    left = queue.active(submission.jobs)
    if left:
        ids = " ".join(map(str, sorted(left)))
        cancel = " ".join(map(str, sorted(left - {submission.last}) or sorted(left)))
        raise Locked(
            f"{root} has jobs of Slurm that are not over: {ids}; wait for them "
            f"(squeue --jobs {ids.replace(' ', ',')}) or cancel them: scancel {cancel}"
        )


def _newest(root: Path) -> int:
    names = (path.name for path in (root / "slurm").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def keep(folder: Path, module: str) -> None:
    """Copy ``module``, so that the plan can be read as it was, whatever becomes of it."""
    copy = folder / "modules" / module
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(module, copy)


def kept(folder: Path) -> dict[str, Declared]:
    """The modules of a submission, by path, as they were."""
    root = folder / "modules"
    return {str(file.relative_to(root)): read_program(file) for file in root.rglob("*.py")}


def digest(module: str) -> str:
    """What tells a module from an edited one.

    Raises:
        MissingInput: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(module).read_bytes()).hexdigest()
    except OSError as error:
        raise MissingInput(f"{module}: {error.strerror}") from None


def add(file: TextIO, job: Job) -> None:
    """Write the next task of an array."""
    parents = [{"task": _plain(p.task), "home": p.home} for p in job.parents]
    file.write(json.dumps({"task": _plain(job.task), "parents": parents}) + "\n")


def read_job(path: Path, number: int) -> Job:
    """Task ``number`` of the array ``path``, from 0.

    Raises:
        MissingInput: there is none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            line = next(itertools.islice(file, number, None))
    except (OSError, StopIteration):
        raise MissingInput(f"{path} has no task {number}") from None
    data = json.loads(line)
    parents = tuple(Parent(_task(p["task"]), p["home"]) for p in data["parents"])
    return Job(_task(data["task"]), parents)


def declared(task: Task) -> Task:
    """``task`` with what its module declares."""
    return replace(task, declared=read_program(Path(task.argv[1])))


def _plain(task: Task) -> Any:
    values = {f.name: getattr(task, f.name) for f in fields(task) if f.name != "declared"}
    policy = {**asdict(task.policy), "retries": dict(_retries(task.policy))}
    return plain({**values, "policy": policy})


def _retries(policy: Policy) -> Iterator[tuple[str, Any]]:
    for failure, retry in policy.retries.items():
        yield failure, asdict(retry)


def _task(data: Mapping[str, Any]) -> Task:
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
    policy: dict[str, Any] = dict(values.pop("policy"))
    retries = {
        failure: Retry(r["times"], r["delay"], tuple((n, w) for n, w in r["changes"]))
        for failure, r in policy.pop("retries").items()
    }
    return Task(**values, policy=Policy(**policy, retries=retries))
