"""A plan against the results on disk: what is proved done, what would run, and what an edit put out of date."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expc.emit.render import Rendered
from expc.ir import Flag, Plan
from expc.runs import stream
from expc_runtime.state.identity import counted
from expc_runtime.state.plan import Layout, Task, proof, tasks
from expc_runtime.state.program import Declared, read_program
from expc_runtime.state.records import Result, read_result
from expc_runtime.state.table import standing

_OPEN = "pending"


@dataclass
class Instances:
    """The stage instances of one stage, by state. Runs that share an instance count it once."""

    states: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.states.total()

    @property
    def left(self) -> int:
        """How many would run now: all that are not settled. A gate that was not met is not tried again."""
        settled = ("done", "undefined", "failed(gate)", "skipped")
        return sum(n for state, n in self.states.items() if not state.startswith(settled))


@dataclass
class Standing:
    """What a plan finds on disk."""

    stages: dict[str, Instances] = field(default_factory=dict)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(stage, why its result no longer counts) -> how many results."""
    unplanned: tuple[str, ...] = ()
    """Runs on disk that the plan no longer has."""


def compare(plan: Plan, rendered: Rendered, root: Path) -> Standing:
    """Read every result that the plan could use. Nothing is written, no lock is taken."""
    found = Standing({stage: Instances() for stage in plan.stages})
    seen: set[str] = set()
    names: set[str] = set()
    reasons = _Reasons(plan)
    with _at(root), _modules(plan, rendered) as folder:
        layout = Layout(plan.experiment, folder)
        for task in tasks(stream(plan), layout):
            if layout.root.is_dir():
                names.add(task.run)
            if task.skip:
                found.stages[task.stage].states["skipped"] += 1
            elif task.key not in seen:
                seen.add(task.key)
                found.stages[task.stage].states[_state(task, layout.root)] += 1
            _note_lost(task, layout.root, found, reasons)
        found.unplanned = tuple(sorted(_on_disk(layout.root) - names))
    return found


@contextlib.contextmanager
def _at(root: Path) -> Iterator[None]:
    """State files are named from the project root."""
    with contextlib.chdir(root):
        yield


@contextlib.contextmanager
def _modules(plan: Plan, rendered: Rendered) -> Iterator[str]:
    """The modules as they would be written, where the reader of plans can read them."""
    with tempfile.TemporaryDirectory(prefix="expc-") as folder:
        for module in plan.modules:
            Path(folder, module.file).write_text(rendered.files[module.file], encoding="utf-8")
        yield folder


def _state(task: Task, root: Path) -> str:
    if proof(root / task.name, task.key) is None and not (root / task.name).is_dir():
        return _OPEN
    return standing(task, root)[0].label


def _on_disk(root: Path) -> set[str]:
    """Runs that have results: what a sweep made, not what a person ran by hand."""
    if not root.is_dir():
        return set()
    return {
        run.name for run in root.iterdir() if "seed=" in run.name and any(run.glob("*/result.json"))
    }


def _note_lost(task: Task, root: Path, found: Standing, reasons: _Reasons) -> None:
    result = read_result(root / task.name) if (root / task.name).is_dir() else None
    if result is None or task.skip or result.key == task.key or result.state == "smoke":
        return
    found.lost[task.stage, reasons.why(task, result)] += 1


class _Reasons:
    """Why a result is not of the instance that now stands in its place."""

    def __init__(self, plan: Plan) -> None:
        self._flags = {
            module.file: {flag.field: flag for flag in module.program.flags}
            for module in plan.modules
        }
        self._declared: dict[str, Declared] = {}

    def why(self, task: Task, result: Result) -> str:
        """The first cause, in the words of the spec: a value, an earlier stage, or the code."""
        module = task.argv[1]
        declared = self._declared.setdefault(module, read_program(Path(module)))
        now = declared.values(task.argv[2:])
        changed = _changed(result.config, now)
        if changed:
            flags = self._flags[Path(module).name]
            return "; ".join(_told(name, *pair, flags.get(name)) for name, pair in changed.items())
        after = dict(zip(task.after, task.parents, strict=True))
        moved = [stage for stage, key in after.items() if result.parents.get(stage) != key]
        if result.program == declared.program and moved:
            return f"`{moved[0]}`, which it starts from, would run anew"
        return f"what `{Path(module).name}` does has changed"


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ, of those that tell instances apart."""
    then, now = counted(then), counted(now)
    names = [name for name in {**then, **now} if name != "smoke"]
    pairs = {name: (_plain(then.get(name)), _plain(now.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _told(name: str, then: object, now: object, flag: Flag | None) -> str:
    place = f" ({flag.span})" if flag is not None else ""
    return f"{name} {_value(then)} -> {_value(now)}{place}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "not set" if value is None else str(value)
