"""How runs are carried out: what a spec says under `run`, for each stage, in the flags of its programs.

No program and no key of a result depends on it: a retry is another try at the same instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from expc import digest
from expc.experiment import Experiment, Stage
from expc.findings import Finding, SpecError, listed, suggest
from expc.ir import Backend, Flag, Notify, Option, Policy, Program, Retry
from expc.lower import lower
from expc.resolve import Document, Override, resolve
from expc.source import KeyPath
from expc.spec import HALF, RayTask, Slurm
from expc.spec import Retry as Written
from expc.sweep import Space, Variant, flag_name, number


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
        return any(_turns(flag, value) for flag in self.turned[path])


def _turns(flag: Flag, value: Any) -> bool:
    now = flag.default
    if value == HALF and isinstance(now, float):
        return now != 0
    if value == HALF and type(now) is int:
        return abs(now) > 1
    return word(flag, value) != word(flag, flag.default)


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
        changes.append(_turned(flag, written.changes[path]))
    delay = written.delay.in_seconds if written.delay is not None else None
    yield Retry(one.failure, written.times, delay, tuple(changes))


def _turned(flag: Flag, value: Any) -> tuple[str, str]:
    """A flag and its value; of `--no-compile` nothing follows."""
    name = flag_name(flag)
    if isinstance(value, bool):
        return name if value else name.replace("--", "--no-", 1), ""
    return name, word(flag, value)


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
            yield key, value.in_seconds if key == "time" else _whole(value)
    yield "devices", devices


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fingerprint(base: Experiment, space: Space) -> str:
    """Names all that is said of how runs are carried out; empty where nothing is."""
    said = (policies(base, space), notify(base), backends(base))
    return digest.text(repr(said)) if any(said) else ""


# ------------------------------------------------------------------------------------------------- misfits


def misfits(document: Document, base: Experiment, space: Space) -> list[Finding]:
    """Retries that can't be carried out: they change what is no setting of a stage, or set it to what it can't be."""
    found: list[Finding] = []
    lost: dict[KeyPath, list[Planned]] = {}
    turned: set[KeyPath] = set()
    for stage in base.stages.values():
        for one in planned(stage, base, space):
            for path in one.written.changes:
                if one.turned[path]:
                    turned.add(one.at(path))
                    found += _unfit(document, base, space, one, path)
                else:
                    lost.setdefault(one.at(path), []).append(one)
    found += [_no_setting(base, space, lost[at], at) for at in lost if at not in turned]
    return list(dict.fromkeys(found))


def _unfit(
    document: Document, base: Experiment, space: Space, one: Planned, path: str
) -> Iterator[Finding]:
    """What is wrong with a change of a setting that there is."""
    place, flag = base.tree.at(one.at(path)), one.turned[path][0]
    lacking = next((v for v in space.variants if _lacks(v, one.stage, flag)), None)
    if lacking is not None:
        yield Finding(
            "XC510",
            f"not every run of stage `{one.stage.name}` has a `{path}`{_told_apart(lacking)}",
            place.key,
            why="a retry of a stage is the same for all of its runs",
            help="change a setting that all of them have",
        )
        return
    if why := _kept(flag, path):
        yield Finding(
            "XC510",
            f"`{path}` can't be changed by a retry",
            place.key,
            why=f"the next try goes on from a checkpoint: {why}",
            help="leave it out; less memory is what `microbatch: half` is for",
        )
    else:
        yield from _misset(document, space, one, path, flag)


def _misset(
    document: Document, space: Space, one: Planned, path: str, flag: Flag
) -> Iterator[Finding]:
    """What is wrong with the value that a retry gives a setting."""
    value, span = one.written.changes[path], document.tree.at(one.at(path)).value
    if isinstance(value, str) and value != HALF and _is_number(flag.default):
        yield Finding(
            "XC103",
            f"`{path}` becomes a number, or `half`, not the text `{value}`",
            span,
            help="`half` halves it at each try anew; a number is what it is in the next try",
        )
    elif value != HALF or flag.choices:
        yield from _refused(document, space, one, path, flag)
    elif not _is_number(flag.default):
        yield Finding(
            "XC510",
            f"`{path}` can't be halved: it is `{word(flag, flag.default)}`",
            span,
            why="only a number can be",
            help="write what it is in the next try",
        )


_SHAPES = "its weights have the shapes that they have"
_HELD = {
    "data": "it stands at a place in these very rows",
    "env": "it holds episodes of this very environment",
    "replay": "it has made the updates that this replay asked for",
    "model": _SHAPES,
    "heads": _SHAPES,
}


def _kept(flag: Flag, path: str) -> str:
    """Why a checkpoint keeps a setting as it is; a factor of a net may change, a size may not."""
    why = _HELD.get(path.partition(".")[0], "")
    return "" if why is _SHAPES and isinstance(flag.default, float) else why


def _refused(
    document: Document, space: Space, one: Planned, path: str, flag: Flag
) -> Iterator[Finding]:
    """What the spec would be told if it said itself what a retry makes of it, or why no flag could say that."""
    variant = next(v for v in space.variants if one.stage.name in v.programs)
    firsts = [each for axis in space.loops if axis.rows for each in axis.row(0)]
    span = document.tree.at(one.at(path)).value
    moved = Override(f"{one.stage.name}.{path}", one.written.changes[path], span)
    try:
        then = resolve(document, (*variant.overrides(), *firsts, moved))
    except SpecError as error:
        yield from error.findings
        return
    program, _ = lower(then, then.stages[one.stage.name], [flag.path])
    if not any(digest.same_kind(each, flag) for each in program.flags):
        yield Finding(
            "XC510",
            f"`{path}` can't become {_shown(one.written.changes[path])} in a retry",
            span,
            why=_CODE,
            help=f"set it to a value of the kind that it has, `{word(flag, flag.default)}`, or leave it out",
        )


_CODE = "that decides the code of the stage: another program has results of its own"


def _shown(value: object) -> str:
    return "nothing" if value is None else f"`{_yaml(value)}`"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lacks(variant: Variant, stage: Stage, flag: Flag) -> bool:
    program = variant.programs.get(stage.name)
    return program is not None and all(each.path != flag.path for each in program.flags)


def _told_apart(variant: Variant) -> str:
    """Which runs are meant, for a message."""
    if variant.condition.name:
        return f": those of condition `{variant.condition.name}` do not"
    named = [
        f"`{path}: {word}`"
        for axis, row in variant.rows
        for path, word in zip(axis.paths, axis.words[row], strict=True)
    ]
    return f": those with {' and '.join(named)} do not" if named else ""


def _no_setting(base: Experiment, space: Space, several: list[Planned], at: KeyPath) -> Finding:
    """A change of what is no setting in any stage that the retry is for."""
    stages, path = [one.stage for one in several], str(at[-1])
    named = f"stage `{stages[0].name}` has no" if len(stages) == 1 else "no stage has a"
    undivided = next((stage.kind.undivided for stage in stages if stage.kind.undivided), None)
    if path == "microbatch" and undivided is not None:
        why, instead = undivided
        return _told(f"{named} `{path}`", base, at, instead, why)
    for stage in stages:
        if (*stage.path, *path.split(".")) in base.tree.where:
            return _no_flag(base, stage, path, at, _settings(space, stages, path))
    settings = _settings(space, stages)
    hint = suggest(path, [*settings, "times", "delay"])
    help = (
        f"{hint} (settings: {listed(settings, 6)})" if hint else f"settings are {listed(settings)}"
    )
    return _told(f"{named} `{path}`", base, at, help)


def _no_flag(base: Experiment, stage: Stage, path: str, at: KeyPath, below: list[str]) -> Finding:
    """A change of what a stage has, but not as a setting."""
    place = (*stage.path, *path.split("."))
    value = base.tree.get(place)
    if isinstance(value, dict):
        message = f"`{path}` is no setting, but a map of them, in stage `{stage.name}`"
        help = f"name one of them: {listed(below, 6)}" if below else "leave it out"
        return _told(message, base, at, help)
    if value is not None and base.is_written(place):
        return _told(f"`{path}` can't be changed by a retry", base, at, "leave it out", _CODE)
    message = f"`{path}` is not set in stage `{stage.name}`"
    if value is None:
        return _told(message, base, at, f"set `{path}` in the stage, too, or leave it out")
    if value == base.tree.get(at):
        already = f"{message}, and is `{_yaml(value)}` already"
        return _told(already, base, at, "change something else, or leave it out")
    return _told(
        message, base, at, f"write what it is otherwise, `{path}: {_yaml(value)}`, in the stage"
    )


def _yaml(value: object) -> str:
    """A value as a spec writes it: YAML reads `1e-08` as text."""
    text = number(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _told(
    message: str,
    base: Experiment,
    at: KeyPath,
    help: str,
    why: str = "the next try would be like the one that failed",
) -> Finding:
    return Finding("XC510", message, base.tree.at(at).key, why=why, help=help)


def _settings(space: Space, stages: list[Stage], below: str = "") -> list[str]:
    """What a retry of stages could change, by path; all of it, or what is below a path."""
    flags = [
        flag
        for variant in space.variants
        for stage in stages
        if stage.name in variant.programs
        for flag in variant.programs[stage.name].flags
    ]
    named = [(".".join(map(str, flag.path[2:])), flag) for flag in flags]
    found = [path for path, flag in named if not _kept(flag, path)]
    if any(stage.kind.undivided is None for stage in stages):
        found.append("microbatch")
    return list(dict.fromkeys(path for path in found if path.startswith(below and f"{below}.")))
