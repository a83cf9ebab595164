"""The plan of a sweep: from the words that sweep.sh prints to stage instances, one at a time."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from expc_runtime.errors import MissingInput
from expc_runtime.state.identity import SMOKE, identity, resolve, run_name
from expc_runtime.state.program import Declared, read_program
from expc_runtime.state.records import Result, read_result

__all__ = ["Layout", "Policy", "Retry", "Task", "cover", "proof", "records", "tasks"]

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Retry:
    """What is done about one class of failure."""

    times: int = 1
    delay: float = 0.0  # seconds before the first; doubled each time
    changes: tuple[tuple[str, str], ...] = ()  # field of the config, the word for its value


@dataclass(frozen=True)
class Policy:
    """How the attempts at a stage are carried out; part of no result's identity."""

    timeout: float | None = None  # seconds of one attempt
    devices: int = 1  # GPUs of each run; ranks, where it runs on the CPU
    retries: Mapping[str, Retry] = field(default_factory=dict)  # by class of failure


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

    def smoked(self) -> "Layout":
        """The same modules, as a smoke sweep runs them."""
        return replace(self, smoke=True)


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
    program: str = ""  # of its module
    after: tuple[str, ...] = ()  # stages of this run that come first
    parents: tuple[str, ...] = ()  # their keys
    skip: str = ""  # why it is not to run at all
    policy: Policy = field(default=Policy(), compare=False)
    declared: Declared | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"

    def planned(self) -> dict[str, Any]:
        """The value of each field of its config, as the plan has it."""
        return self.declared.values(self.argv[2:]) if self.declared else {}


def tasks(
    plan: BinaryIO, layout: Layout, known: Mapping[str, Declared] | None = None
) -> Iterator[Task]:
    """The stage instances of ``plan``, in its order and in constant memory.

    ``known`` are modules, by path, that are not read again: as they were when the plan was kept.

    ``plan`` holds records of NUL-ended words, each led by its number of words: ``limit STAGE
    [--timeout SECONDS] [--devices N]``, ``retry STAGE CLASS [--times N] [--delay SECONDS]
    [-- FLAG VALUE...]``, ``run CONDITION SEED``, ``stage NAME MODULE [--after PARENT]... --
    FLAGS...``, ``skip NAME REASON``, ``end``.

    Raises:
        MissingInput: the plan breaks off, a module cannot be read or does not take a flag.
    """
    modules = dict(known or {})
    policies: dict[str, Policy] = {}
    index, run, condition, seed = 0, "", "", ""
    earlier: dict[str, Task] = {}
    for kind, *words in records(plan):
        if kind == "run":
            condition, seed = words
            index, run, earlier = index + 1, run_name(condition, seed), {}
            continue
        if kind == "end":
            return
        if kind in ("limit", "retry"):
            policies[words[0]] = _policy(kind, words, policies.get(words[0], Policy()))
            continue
        start = Task(index, run, condition, seed, words[0])
        if kind == "skip":
            task = Task(index, run, condition, seed, words[0], skip=words[1])
        else:
            start = replace(start, policy=policies.get(words[0], start.policy))
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
        _fits(start.policy, modules[module])
    declared = modules[module]
    if layout.smoke:
        flags = [*flags, "--smoke"]
    keys = {parent: earlier[parent].key for parent in after}
    return replace(
        start,
        argv=(layout.python, module, *flags, "--out", f"{layout.root}/{start.name}"),
        key=identity(declared.program, declared.values(flags), keys),
        program=declared.program,
        after=after,
        parents=tuple(keys.values()),
        skip=f"{skipped} is skipped" if skipped else "",
        declared=declared,
    )


def _policy(kind: str, words: list[str], old: Policy) -> Policy:
    """``old`` with what a ``limit`` or ``retry`` record says."""
    border = words.index("--") if "--" in words else len(words)
    first = 1 if kind == "limit" else 2
    options = dict(zip(words[first:border:2], words[first + 1 : border : 2], strict=True))
    try:
        if kind == "limit":
            timeout = float(options.pop("--timeout", 0)) or old.timeout
            limited = replace(
                old, timeout=timeout, devices=int(options.pop("--devices", old.devices))
            )
        else:
            times, delay = int(options.pop("--times", 1)), float(options.pop("--delay", 0))
            retry = Retry(times, delay, _changes(words[border + 1 :]))
            limited = replace(old, retries={**old.retries, words[1]: retry})
    except ValueError as error:
        raise MissingInput(f"{kind} {' '.join(words)}: {error}") from None
    if options:
        raise MissingInput(f"{kind} {words[0]} knows no {next(iter(options))}")
    return limited


def _changes(words: list[str]) -> tuple[tuple[str, str], ...]:
    """Fields and words of ``--precision 32 --microbatch half --no-compile``."""
    changes: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("--"):
            changes.append((word[2:].replace("-", "_"), ""))
        else:
            changes[-1] = (changes[-1][0], word)
    return tuple(
        (name.removeprefix("no_"), str(not name.startswith("no_")).lower())
        if not word
        else (name, word)
        for name, word in changes
    )


def _fits(policy: Policy, declared: Declared) -> None:
    """Raises MissingInput where a retry would change what ``declared`` has not."""
    for retry in policy.retries.values():
        for name, word in retry.changes:
            declared.changed(name, word, 1)


def cover(stages: Iterable[Task], layout: Layout) -> list[Task]:
    """A few runs with every module that has no result yet, each with the stages before it.

    ``stages`` are the tasks of a smoke sweep, and ``layout`` is that of the real one. A module has a result where its
    very program left one: in a real run of the plan, or in any smoke run. The fewest runs are taken greedily:
    first the one with the most modules that are still missing. Memory grows with the number of
    modules, not of runs.
    """
    smoked = layout.smoked().root.glob("*/*/result.json")
    proved = {r.program for path in smoked if (r := read_result(path.parent)) is not None}
    kinds: dict[tuple[str, ...], list[Task]] = {}
    for run in _runs(stages):
        live = [task for task in run if not task.skip]
        for task in live:
            if task.program not in proved and _has_run(task, layout):
                proved.add(task.program)
        kinds.setdefault(tuple(task.argv[1] for task in live), live)
    missing = {task.program for run in kinds.values() for task in run} - proved
    picked: list[Task] = []
    while missing:
        best = max(kinds.values(), key=lambda run: len(missing & {task.program for task in run}))
        picked += _with_ancestors(best, missing)
        missing -= {task.program for task in best}
    return picked


def _runs(stages: Iterable[Task]) -> Iterator[list[Task]]:
    """The stages of a run at a time."""
    for _, run in itertools.groupby(stages, key=lambda task: task.index):
        yield list(run)


def _has_run(task: Task, layout: Layout) -> bool:
    result = read_result(resolve(layout.root / task.name))
    return result is not None and result.program == task.program


def _with_ancestors(run: Sequence[Task], missing: set[str]) -> list[Task]:
    wanted: set[str] = set()
    for task in reversed(run):
        if task.stage in wanted or task.program in missing:
            wanted |= {task.stage, *task.after}
    return [task for task in run if task.stage in wanted]


def proof(folder: Path, key: str) -> Result | None:
    """The result that proves the instance ``key`` of ``folder`` done or undefined, if there is one.

    Only a result.json counts, never an exit code.
    """
    result = read_result(resolve(folder))
    return result if result is not None and result.key == key else None


def records(plan: BinaryIO) -> Iterator[list[str]]:
    """The records of words that a generated script prints."""
    words = _words(plan)
    for count in words:
        yield [next(words) for _ in range(int(count))]


def _words(plan: BinaryIO) -> Iterator[str]:
    rest = b""
    while chunk := plan.read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\0")
        for word in whole:
            yield word.decode(errors="surrogateescape")
