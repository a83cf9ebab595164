"""How runs are carried out: what a spec says under `run`, for each stage, in the flags of its programs.

No program and no key of a result depends on it: a retry is another try at the same instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from expc.experiment import Experiment, Stage
from expc.ir import Backend, Flag, Notify, Option, Policy, Program, Retry
from expc.source import KeyPath
from expc.spec import RayTask, Slurm
from expc.spec import Retry as Written
from expc.sweep import Space, flag_name, number


@dataclass(frozen=True)
class Planned:
    """A retry as the spec has it for a stage, and the flags that its changes turn. `own`: the stage says it itself."""

    stage: Stage
    failure: str
    written: Written
    own: bool
    turned: Mapping[str, tuple[Flag, ...]]
    """Path of a setting -> the flag that it is, in each program of the stage that has one; none: in no program."""

    def at(self, *keys: str) -> KeyPath:
        """The place of the retry in the spec, or of a key below it."""
        above = self.stage.path if self.own else ()
        return (*above, "run", "retry", self.failure, *keys)

    def turns(self, path: str) -> bool:
        """Whether a change leaves any program other than it was."""
        value = self.written.changes[path]
        return any(word(flag, value) != word(flag, flag.default) for flag in self.turned[path])


def policies(base: Experiment, space: Space) -> tuple[Policy, ...]:
    """What is said of each stage, in the order of the spec; of most specs nothing."""
    found = []
    for stage in base.stages.values():
        run = base.run_of(stage)
        retries = tuple(each for one in planned(stage, base, space) for each in _retry(one))
        timeout = run.timeout.in_seconds if run.timeout is not None else None
        if timeout is not None or run.devices or retries:
            found.append(Policy(stage.name, timeout, run.devices or 1, retries))
    return tuple(found)


def planned(stage: Stage, base: Experiment, space: Space) -> Iterator[Planned]:
    """Every retry that is said of a stage, with what it turns there."""
    programs = [v.programs[stage.name] for v in space.variants if stage.name in v.programs]
    own = stage.shape.run.retry if stage.shape.run is not None else {}
    for failure, written in base.run_of(stage).retry.items():
        turned = {path: _flags(programs, stage, path) for path in written.changes}
        yield Planned(stage, failure, written, failure in own, turned)


def _flags(programs: list[Program], stage: Stage, path: str) -> tuple[Flag, ...]:
    at = (*stage.path, *path.split("."))
    return tuple(flag for program in programs for flag in program.flags if flag.path == at)


def _retry(one: Planned) -> Iterator[Retry]:
    """The retry of a stage. One whose changes all leave the stage as it is has nothing to try there."""
    written = one.written
    turning = [path for path in written.changes if one.turns(path)]
    if not written.times or (written.changes and not turning):
        return
    changes = []
    for path in turning:
        flag = one.turned[path][0]
        changes.append((flag_name(flag), word(flag, written.changes[path])))
    delay = written.delay.in_seconds if written.delay is not None else None
    yield Retry(one.failure, written.times, delay, tuple(changes))


def word(flag: Flag, value: Any) -> str:
    """A value as the flag takes it on a command line; `half` stays what it is."""
    if isinstance(value, tuple | list):
        return ",".join(map(number, value))
    whole = isinstance(value, int) and not isinstance(value, bool)
    return number(float(value) if whole and isinstance(flag.default, float) else value)


# --------------------------------------------------------------------------------------- notices, back ends


def notify(base: Experiment) -> Notify | None:
    """Who is told how the sweep goes."""
    told = base.run.notify if base.run is not None else None
    return Notify(told.webhook, told.form, tuple(told.on)) if told is not None else None


def backends(base: Experiment) -> tuple[Backend, ...]:
    """The clusters that a spec declares, for all stages or for one."""
    runs = {name: base.run_of(stage) for name, stage in base.stages.items()}
    whole = base.run.ray.address if base.run is not None and base.run.ray is not None else None
    found = []
    for name, shape in (("slurm", Slurm), ("ray", RayTask)):
        if any(getattr(run, name) is not None for run in runs.values()):
            stages = tuple(
                (stage, tuple(_options(getattr(run, name) or shape(), run.devices or 1)))
                for stage, run in runs.items()
            )
            address = (("address", whole),) if name == "ray" and whole else ()
            found.append(Backend(name, stages, address))
    return tuple(found)


def _options(asked: Any, devices: int) -> Iterator[Option]:
    for key in type(asked).model_fields:
        value = getattr(asked, key)
        if value is not None and key != "address":
            yield key, value.in_seconds if key == "time" else value
    yield "devices", devices
