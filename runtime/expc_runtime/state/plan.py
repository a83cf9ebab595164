"""The plan of a sweep: from the words that sweep.sh prints to stage instances, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from expc_runtime.errors import MissingInput
from expc_runtime.state.identity import SMOKE, identity, resolve, run_name
from expc_runtime.state.program import Declared, read_program
from expc_runtime.state.records import Result, read_result

__all__ = ["Layout", "Task", "proof", "tasks"]

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Layout:
    """Where a sweep's modules lie and where its runs go, relative to the project root."""

    experiment: str
    folder: str
    python: str = "python"
    smoke: bool = False

    @property
    def root(self) -> Path:
        """Folder of the runs; smoke runs have their own, so that they never touch a real one."""
        return Path("runs") / (f"{self.experiment}{SMOKE}" if self.smoke else self.experiment)


@dataclass(frozen=True)
class Task:
    """One stage of one run."""

    index: int  # of the run, from 1
    run: str
    condition: str
    seed: str
    stage: str
    argv: tuple[str, ...] = ()
    key: str = ""
    after: tuple[str, ...] = ()  # stages of this run that come first
    parents: tuple[str, ...] = ()  # their keys
    skip: str = ""  # why it is not to run at all

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


def tasks(plan: BinaryIO, layout: Layout) -> Iterator[Task]:
    """The stage instances of ``plan``, in its order and in constant memory.

    ``plan`` holds records of NUL-ended words, each led by its number of words: ``run CONDITION
    SEED``, ``stage NAME MODULE [--after PARENT]... -- FLAGS...``, ``skip NAME REASON``, ``end``.

    Raises:
        MissingInput: the plan breaks off, a module cannot be read or does not take a flag.
    """
    modules: dict[str, Declared] = {}
    index, run, condition, seed = 0, "", "", ""
    earlier: dict[str, Task] = {}
    for kind, *words in _records(plan):
        if kind == "run":
            condition, seed = words
            index, run, earlier = index + 1, run_name(condition, seed), {}
            continue
        if kind == "end":
            return
        start = Task(index, run, condition, seed, words[0])
        if kind == "skip":
            task = Task(index, run, condition, seed, words[0], skip=words[1])
        else:
            task = _stage(start, words[1:], layout, modules, earlier)
        earlier[task.stage] = task
        yield task
    raise MissingInput("the plan of the sweep breaks off before its end")


def _stage(
    start: Task,
    words: list[str],
    layout: Layout,
    modules: dict[str, Declared],
    earlier: dict[str, Task],
) -> Task:
    border = words.index("--")
    module, flags = f"{layout.folder}/{words[0]}", words[border + 1 :]
    after = tuple(words[2:border:2])  # --after PARENT --after PARENT
    for parent in after:
        if parent not in earlier:
            raise MissingInput(f"stage {start.stage} comes after {parent}, which its run has not")
    skipped = next((p for p in after if earlier[p].skip), "")
    if module not in modules:
        modules[module] = read_program(Path(module))
    declared = modules[module]
    if layout.smoke:
        flags = [*flags, "--smoke"]
    keys = {parent: earlier[parent].key for parent in after}
    return Task(
        start.index,
        start.run,
        start.condition,
        start.seed,
        start.stage,
        argv=(layout.python, module, *flags, "--out", f"{layout.root}/{start.name}"),
        key=identity(declared.program, declared.values(flags), keys),
        after=after,
        parents=tuple(keys.values()),
        skip=f"{skipped} is skipped" if skipped else "",
    )


def proof(folder: Path, key: str) -> Result | None:
    """The result that proves the instance ``key`` of ``folder`` done or undefined, if there is one.

    Only a result.json counts, never an exit code.
    """
    result = read_result(resolve(folder))
    return result if result is not None and result.key == key else None


def _records(plan: BinaryIO) -> Iterator[list[str]]:
    words = _words(plan)
    for count in words:
        yield [next(words) for _ in range(int(count))]


def _words(plan: BinaryIO) -> Iterator[str]:
    rest = b""
    while chunk := plan.read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\0")
        for word in whole:
            yield word.decode(errors="surrogateescape")
