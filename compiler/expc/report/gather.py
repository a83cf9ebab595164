"""What the files of an experiment say: its stages, conditions and runs, and what computed them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from expc.monitor.planned import Source, script_of
from expc.project import project_root
from expc.report.text import Cleaner
from expc_runtime.state.files import read_json
from expc_runtime.state.identity import planned, resolve
from expc_runtime.state.plan import Task
from expc_runtime.state.records import Result, Status, read_result, read_status
from expc_runtime.state.table import standing

__all__ = ["Declared", "Experiment", "Origin", "Run", "experiments", "gather"]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Run:
    """One stage of one run: where it stands, and what it reached. Times are in seconds, memory in bytes."""

    run: str
    condition: str
    seed: str
    stage: str
    folder: Path  # its own
    product: Path  # where its product lies: its own folder, or that of the run which made it
    status: Status
    argv: tuple[str, ...] = ()
    same_as: str = ""
    began: bool = False  # whether anything of it is on disk
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    floors: Mapping[str, float | None] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    accept: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)  # why a metric has no figure
    warnings: tuple[str, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)  # by a retry: setting -> value now
    planned: Mapping[str, Any] = field(
        default_factory=dict
    )  # the same settings, as the plan has them
    pictures: tuple[str, ...] = ()
    module: str = ""
    program: str = ""
    step: int = 0

    @property
    def name(self) -> str:
        """As messages name it: run and stage."""
        return f"{self.run}/{self.stage}"

    @property
    def seconds(self) -> float:
        """Of all its attempts; nothing where another run did the work."""
        return 0.0 if self.same_as else self.status.seconds

    @property
    def device_seconds(self) -> float:
        """Time of all attempts, times the devices that it held."""
        return self.seconds * max(1, len([d for d in self.status.devices.split(",") if d.strip()]))


@dataclass
class Origin:
    """What computed the results, each value with the number of results that say it."""

    commits: Counter[str] = field(default_factory=Counter)
    dirty: int = 0
    devices: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    specs: Counter[str] = field(default_factory=Counter)  # sha256
    spec: str = ""  # its path
    packages: dict[str, Counter[str]] = field(default_factory=dict)
    programs: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, run: Run, result: Result, clean: Cleaner) -> None:
        """Take in what one result says of its making."""
        if run.module:
            program = (run.stage, run.module, run.program)
            self.programs[program] = self.programs.get(program, 0) + 1
        if result.host:
            self.hosts[result.host] += 1
        said = _map(clean.whole(result.extra.get("provenance")))
        git, spec, device = _map(said.get("git")), _map(said.get("spec")), _map(said.get("device"))
        if git.get("commit"):
            self.commits[str(git["commit"])] += 1
            self.dirty += git.get("clean") is False
        if spec.get("sha256"):
            self.spec = str(spec.get("path", ""))
            self.specs[str(spec["sha256"])] += 1
        if device:
            self.devices[str(device.get("name") or device.get("type") or "?")] += 1
        if said.get("python"):
            self.systems[f"Python {said['python']}, {said.get('platform', '')}"] += 1
        for name, version in _map(said.get("packages")).items():
            self.packages.setdefault(str(name), Counter())[str(version)] += 1


@dataclass(frozen=True)
class Declared:
    """What the spec says of the experiment; empty where there is no spec that can be read."""

    about: str = ""
    spec: str = ""
    texts: tuple[tuple[str, str], ...] = ()  # file and text, the spec's own first
    better: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict
    )  # stage -> metric -> higher or lower
    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    changed_since: bool = False  # results are of another text


@dataclass
class Experiment:
    """An experiment as its files tell it."""

    name: str
    root: Path  # of the project
    stages: dict[str, list[Run]] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    declared: Declared = field(default_factory=Declared)
    folder: str = ""  # generated; empty when the report is made of the runs alone
    notes: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @cached_property
    def clean(self) -> Cleaner:
        """What every text of its files goes through, for the report may be sent to anybody."""
        return Cleaner(self.root)

    @property
    def runs_folder(self) -> Path:
        """Where its runs lie."""
        return self.root / "runs" / self.name

    @property
    def runs(self) -> Iterator[Run]:
        """Every stage of every run."""
        for runs in self.stages.values():
            yield from runs


def experiments(root: Path) -> list[str]:
    """Experiments of a project that have a folder of runs."""
    folders = sorted((root / "runs").glob("*"))
    return [f.name for f in folders if f.is_dir() and not f.name.startswith(".")]


def gather(name: str, root: Path) -> Experiment:
    """All that is known of experiment ``name`` of the project ``root``. Nothing is written or locked.

    Memory grows with the number of results, by their figures alone.
    """
    found = Experiment(name, root)
    with contextlib.chdir(root):  # state files name one another from there
        for task in _tasks(found):
            run, result = _run(task, Path("runs") / name, found.clean)
            found.stages.setdefault(task.stage, []).append(run)
            if result is not None and not run.same_as:
                found.origin.add(run, result, found.clean)
        _note_unplanned(found)
    if not found.folder:  # nothing says which stage comes first, but for the time
        found.stages = dict(sorted(found.stages.items(), key=lambda each: _first(each[1])))
    found.began, found.ended = _times(found)
    found.declared = _declared(found)
    return found


# ------------------------------------------------------------------------------------------------ what should be


def _tasks(found: Experiment) -> list[Task]:
    """The stages of the plan; without one, those that left something on disk."""
    here = Path()
    script = script_of(here, found.name)
    if script is None:
        found.notes.append(f"There is no generated folder of {found.name}. {_OF_DISK}")
        return list(_on_disk(found.runs_folder))
    source = Source(here, found.name, script)
    planned = list(source.tasks())
    if source.trouble:
        trouble = found.clean(source.trouble[0])
        found.notes.append(f"The plan can't be read to its end: {trouble}. {_OF_DISK}")
        return list(_on_disk(found.runs_folder))
    found.folder = script.parent.as_posix()
    return planned


_OF_DISK = "This is what lies under runs/; runs that never began are not in it."


def _on_disk(runs: Path) -> Iterator[Task]:
    """Stage folders as they lie there; what was set aside is not among them."""
    numbers: dict[str, int] = {}
    for folder in sorted(runs.glob("*/*"), key=_natural):
        held = ("status.json", "result.json", "metrics.jsonl", "log")
        if ".was-" in folder.name or not any((folder / name).is_file() for name in held):
            continue
        status, result = read_status(folder), read_result(folder)
        run = folder.parent.name
        condition, _, seed = run.rpartition("seed=")
        yield Task(
            numbers.setdefault(run, len(numbers) + 1),
            run,
            condition.strip(",") if seed else run,
            seed if condition or run.startswith("seed=") else "",
            folder.name,
            key=status.key if status else result.key if result else "",
        )


def _natural(folder: Path) -> tuple[list[tuple[int, float, str]], str]:
    """Numbers in the names of runs by their value: ``lr=9`` before ``lr=10``."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", folder.parent.name)
    return [(0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)], folder.name


def _note_unplanned(found: Experiment) -> None:
    if not found.folder or not found.runs_folder.is_dir():
        return
    names = {run.run for run in found.runs}
    there = [f.name for f in found.runs_folder.iterdir() if f.is_dir() and "seed=" in f.name]
    extra = sorted(name for name in there if name not in names)
    if extra:
        what = "1 run" if len(extra) == 1 else f"{len(extra)} runs"
        found.notes.append(f"{what} on disk that the plan does not have, such as {extra[0]}.")


# ---------------------------------------------------------------------------------------------------- what is


def _run(task: Task, root: Path, clean: Cleaner) -> tuple[Run, Result | None]:
    folder = root / task.name
    own = read_status(folder)
    status, result = standing(task, root)
    status = replace(status, reason=clean(status.reason), source=clean(status.source))
    product = resolve(folder)
    changed = dict(result.changed if result and result.changed else status.changed)
    extra = result.extra if result else {}
    run = Run(
        task.run,
        task.condition,
        task.seed,
        task.stage,
        folder=folder,
        product=product,
        status=status,
        argv=task.argv,
        same_as=own.same_as if own else "",
        began=folder.is_dir(),
        metrics=result.metrics if result else {},
        floors=result.floors if result else {},
        gate=_map(clean.whole(result.gate)) if result else {},
        accept=_map(clean.whole(extra.get("accept"))),
        reasons={str(k): clean(str(v)) for k, v in _map(extra.get("reasons")).items()},
        warnings=tuple(clean.whole(result.warnings)) if result else (),
        memory={k: v for k, v in _map(result.memory if result else {}).items() if v},
        changed=changed,
        planned=(_as_planned(result.config) if result else task.planned()) if changed else {},
        pictures=tuple(_pictures(extra.get("files"), product)),
        module=result.module if result else "",
        program=result.program if result else task.program,
        step=max(status.step, result.step if result else 0),
    )
    return run, result


def _as_planned(config: Mapping[str, Any]) -> Mapping[str, Any]:
    with contextlib.suppress(Exception):  # a result by hand; its figures are marked all the same
        return planned(config)
    return {}


def _pictures(files: Any, product: Path) -> Iterator[str]:
    for name in files if isinstance(files, list) else []:
        inside = isinstance(name, str) and Path(name).name == name
        if inside and name.lower().endswith(_PICTURES) and (product / name).is_file():
            yield name


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(runs: list[Run]) -> float:
    return min((run.status.began for run in runs if run.status.began), default=math.inf)


def _times(found: Experiment) -> tuple[float, float]:
    """When the first attempt began and when anything last happened; seconds since the epoch."""
    began = [run.status.began for run in found.runs if run.status.began]
    ended = [run.status.heartbeat for run in found.runs if run.status.heartbeat]
    first = _first_line(found.runs_folder / "events.jsonl").get("time")
    if isinstance(first, int | float):
        began.append(float(first))
    return min(began, default=0.0), max(ended, default=0.0)


def _first_line(path: Path) -> Mapping[str, Any]:
    """The first line of a file of JSON lines; empty when there is none."""
    try:
        with path.open(encoding="utf-8") as lines:
            data = json.loads(lines.readline())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


# ------------------------------------------------------------------------------------------- what the spec says


_Loaded = tuple[tuple[tuple[str, str], ...], str, Mapping[str, Mapping[str, str]]]


def _declared(found: Experiment) -> Declared:
    lock = read_json(found.root / found.folder / "expc.lock.json") if found.folder else None
    name = str((lock or {}).get("spec") or found.origin.spec)
    path = found.root / name
    if not name or not path.resolve().is_relative_to(found.root.resolve()) or not path.is_file():
        return Declared(axes=_axes(found))
    text = path.read_text(encoding="utf-8", errors="replace")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    changed = bool(found.origin.specs) and digest not in found.origin.specs
    loaded: _Loaded = ((name, text),), _about(text), {}
    with contextlib.suppress(Exception):  # it may have been edited into anything since
        loaded = _loaded(path, found.root)
    texts, about, better = found.clean.whole(loaded[0]), found.clean(loaded[1]), loaded[2]
    return Declared(about, name, texts, better, _axes(found), changed)


def _loaded(path: Path, root: Path) -> _Loaded:
    """Texts, question and directions of a spec that still resolves."""
    from expc.build import load

    if project_root(path) != root.resolve():
        raise ValueError(f"{path} is of another project")
    experiment = load(path)[1]
    texts = tuple((source.file, source.text) for source in experiment.sources)
    better = {stage.name: stage.kind.logged(stage) for stage in experiment.stages.values()}
    return texts, experiment.about, better


def _about(text: str) -> str:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    return str(data.get("about", "")) if isinstance(data, dict) else ""


def _axes(found: Experiment) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What varies, from the names of the conditions: ``a=1,b=2`` has two axes, a plain name is one of `condition`."""
    axes: dict[str, dict[str, None]] = {}
    for run in found.runs:
        for axis, value in _parts(run.condition):
            axes.setdefault(axis, {})[value] = None
        if run.seed:
            axes.setdefault("seed", {})[run.seed] = None
    seeds = axes.pop("seed", None)
    if seeds is not None:
        axes["seed"] = seeds
    return tuple((axis, tuple(values)) for axis, values in axes.items())


def _parts(condition: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in condition.split(",") if condition else []:
        axis, equals, value = part.partition("=")
        if equals:
            found.append((axis, value))
        elif found:  # the rest of a value that is a list
            found[-1] = (found[-1][0], f"{found[-1][1]},{part}")
        else:
            found.append(("condition", part))
    return found
