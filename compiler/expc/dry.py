"""Try every stage on shapes alone: what to ask the process that has torch, and what its answer means.

Modules are rendered in memory and written to a scratch folder. One child looks at any number of specs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expc.build import Compiled, folder_of, shown
from expc.child import ask
from expc.components.core import Use
from expc.emit.render import render
from expc.emit.write import as_it_runs
from expc.experiment import Experiment, Stage
from expc.findings import Finding, Note, Span
from expc.ir import Artifact, Flag, Program
from expc.kinds.core import Sample
from expc.plan import paired
from expc.runs import stage_words, telling_points
from expc.source import KeyPath
from expc.sweep import flag_name, places

PRECISIONS = ("32", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Build:
    """A stage with values: what is built once, however many runs it is part of."""

    file: str
    flags: tuple[str, ...]
    stage: Stage
    program: Program
    experiment: Experiment
    parents: Mapping[str, int]


@dataclass(frozen=True)
class Tried:
    """A build, and the sizes that a training step of it has, in bytes: see `expc_runtime.dry.memory`."""

    build: Build
    sizes: Mapping[str, Any] | None


@dataclass(frozen=True)
class Dry:
    """What came of a spec. `unchecked` says what could not be seen, a line each; `idle` are stages that build nothing."""

    findings: tuple[Finding, ...]
    tried: tuple[Tried, ...]
    unchecked: tuple[str, ...]
    idle: tuple[str, ...]


def dry(specs: Sequence[Compiled]) -> list[Dry]:
    """Look at every structural variant of specs, and at the extremes of their loops, in one child.

    Nothing is read but headers of files. Raises `ChildFailed` if the child gives no answer.
    """
    with ExitStack() as held:
        each = [_Spec(made, _scratch(held)) for made in specs]
        root = specs[0].experiment.root if specs else Path()
        answer = ask("expc_runtime.dry", {"specs": [spec.asked() for spec in each]}, root)
    return [spec.told(told["builds"]) for spec, told in zip(each, answer["specs"], strict=True)]


def _scratch(held: ExitStack) -> Path:
    return Path(held.enter_context(tempfile.TemporaryDirectory(prefix="expc-"))).resolve()


@dataclass
class _Spec:
    made: Compiled
    scratch: Path
    builds: list[Build] = field(default_factory=list)
    idle: dict[str, None] = field(default_factory=dict)

    def asked(self) -> dict[str, Any]:
        experiment = self.made.experiment
        folder = folder_of(experiment)
        self.name = shown(folder, experiment.root)
        self.rendered = as_it_runs(render(experiment, self.made.plan, self.name), folder)
        written = self.scratch / self.name
        written.mkdir(parents=True)
        for module in self.made.plan.modules:
            (written / module.file).write_text(self.rendered.files[module.file], encoding="utf-8")
        self._collect()
        return {
            "root": str(experiment.root.resolve()),
            "folder": str(written),
            "builds": [_asked(build) for build in self.builds],
        }

    def _collect(self) -> None:
        known: dict[tuple[object, ...], int] = {}
        for variant, block in paired(self.made.experiment, self.made.space):
            for point in telling_points(block):
                here: dict[str, int] = {}
                for run in block.stages:
                    if run.skip:
                        continue
                    stage = variant.experiment.stages[run.stage]
                    if stage.kind.samples is None:
                        self.idle[run.stage] = None
                        continue
                    words = stage_words(run, point, 0)
                    flags = tuple(words[words.index("--") + 1 : -2])  # without the seed
                    parents = {name: here[name] for name in run.after if name in here}
                    key = (run.module, flags, tuple(parents.items()))
                    if key not in known:
                        known[key] = len(self.builds)
                        program = variant.programs[run.stage]
                        self.builds.append(
                            Build(run.module, flags, stage, program, variant.experiment, parents)
                        )
                    here[run.stage] = known[key]

    def told(self, answers: Sequence[Mapping[str, Any]]) -> Dry:
        findings: dict[tuple[str, Span, str], Finding] = {}
        unchecked: dict[str, None] = {}
        clean = {b.file for b, told in zip(self.builds, answers, strict=True) if not told["faults"]}
        for build, answer in zip(self.builds, answers, strict=True):
            for fault in answer["faults"]:
                found = _finding(build, fault, self._place(build, fault))
                if build.file in clean:  # so it is a value that does it
                    found = replace(found, notes=(*found.notes, *self._values_of(build)))
                findings.setdefault((found.code, found.span, found.message), found)
            for what in answer["unchecked"]:
                unchecked[f"{build.stage.name}: {what}"] = None
        tried = tuple(
            Tried(build, answer["sizes"])
            for build, answer in zip(self.builds, answers, strict=True)
        )
        order = sorted(findings.values(), key=lambda f: (f.span, f.code, f.message))
        return Dry(tuple(order), tried, tuple(unchecked), tuple(self.idle))

    def _values_of(self, build: Build) -> Iterator[Note]:
        """The swept values of a build, where the sweep lists them."""
        given = flag_values(build.flags)
        by_path = {flag.path: flag_name(flag).removeprefix("--") for flag in build.program.flags}
        for axis in self.made.space.loops:
            for column, path in enumerate(axis.paths):
                name = next(
                    (by_path[at] for at in places(path, build.experiment) if at in by_path), ""
                )
                for row, words in enumerate(axis.words):
                    if name in given and words[column] == given[name]:
                        yield Note(axis.spans[row][column], "with this value")

    def _place(self, build: Build, fault: Mapping[str, Any]) -> KeyPath:
        """The path of the spec behind a fault: by the part it names, else by the line of the module."""
        stage = build.stage
        named = _named(build, fault)
        if named is not None:
            return named
        entry = self.rendered.lock["files"].get(build.file, {})
        paths = {_dotted(path): path for path in build.experiment.tree.where}
        inside = [
            (last - first, dotted)
            for first, last, _, dotted in entry.get("map", ())
            if first <= fault["line"] <= last and dotted in paths
        ]
        if fault["line"] and inside:
            return paths[min(inside)[1]]
        return next((use.path for use in stage.every_use() if _stands_at(use, fault)), stage.path)


def _span_of(build: Build, path: KeyPath) -> Span:
    """The key at a path, or above it where nothing is written."""
    where = build.experiment.tree.where
    while path not in where:
        path = path[:-1]
    return where[path].key


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path[1:] if path[:1] == ("stages",) else path))


def _stands_at(use: Use, fault: Mapping[str, Any]) -> bool:
    """Whether a component is the user's own and its file is where the fault arose."""
    module = use.component.target.partition(":")[0].replace(".", "/")
    return use.component.own and str(fault["at"]).startswith((f"{module}.py", f"{module}/"))


# ---------------------------------------------------------------------------------------------------- question


def _asked(build: Build) -> dict[str, Any]:
    stage, program = build.stage, build.program
    samples: Mapping[str, Sample] = stage.kind.samples(stage, program)
    feed = dict(program.feed.build.kwargs)
    nets = [(net.name, net.path[2]) for net in program.nets if net.state and len(net.path) > 2]
    return {
        "module": build.file,
        "flags": build.flags,
        "columns": [
            {"name": name, "shape": _dims(sample.shape), "dtype": sample.dtype}
            for name, sample in samples.items()
        ],
        "source": _source(stage.uses.get("data")),
        "feed": {name: _number(feed.get(name)) for name in ("batch", "val", "test", "drop_last")}
        | {"rows": _rows(stage)},
        "parts": [name for name, slot in nets if slot == "model"],
        "heads": [name for name, slot in nets if slot == "heads"],
        "starts": [_start(start, build) for start in program.inputs],
        "chosen": any(getattr(use.slot, "trains", None) for use in stage.every_use()),
        **_acting(stage),
    }


def _dims(shape: tuple[int | Flag, ...] | None) -> list[Any] | None:
    return None if shape is None else [_number(size) for size in shape]


def _number(value: object) -> Any:
    return {"flag": value.field} if isinstance(value, Flag) else value


def _source(use: Use | None) -> dict[str, Any] | None:
    if use is None or use.component.own:
        return None
    params = {name: use.param(name) for name in use.component.fields()}
    return {"target": use.component.target, "params": params}


def _rows(stage: Stage) -> int | None:
    """How many rows there are, where the source says so and nothing leaves some out."""
    use = stage.uses.get("data")
    if use is None or any(getattr(use.slot, key, None) for key in ("limit", "stream")):
        return None
    split = getattr(use.slot, "split", None)
    return None if getattr(split, "by", None) else use.component.rows


def _start(start: Artifact, build: Build) -> dict[str, Any]:
    source, _, other = start.source.partition("#")
    stage = source.removeprefix("stage:").partition("/")[0] if source.startswith("stage:") else ""
    written = getattr(build.stage.shape, str(start.path[2])).get(start.path[3])
    return {
        "slot": start.path[2],
        "part": start.part,
        "parent": build.parents.get(stage) if stage else None,
        "file": "" if stage else source,
        "other": other,
        "missing": list(getattr(written, "missing", ())),
        "extra": list(getattr(written, "extra", ())),
    }


def _acting(stage: Stage) -> dict[str, Any]:
    """For a stage that acts in an environment: how many actions there are, and what a frame is."""
    if stage.kind.frame is None:
        return {}
    actions = stage.uses["env"].component.actions
    return {"actions": actions, "frame": stage.kind.frame} if actions is not None else {}


# ---------------------------------------------------------------------------------------------------- findings

_BUILT = ("import", "values", "build", "drives", "data")


def _named(build: Build, fault: Mapping[str, Any]) -> KeyPath | None:
    """The place of what a fault names itself."""
    what, part = fault["what"], fault["part"]
    stage = build.stage
    if what == "hand_off":
        return next(
            start.path for start in build.program.inputs if f"{start.path[2]}.{start.part}" == part
        )
    if fault["batch"]:
        return (*stage.path, "data", "batch")
    if what in ("untrained", "data"):
        return (*stage.path, "optim" if what == "untrained" else "data")
    if part:
        slots = {"update": ("loss", "model"), "measure": ("metrics", "loss")}.get(what, ("model",))
        places = [(*stage.path, slot, part) for slot in slots]
        return next((place for place in places if place in build.experiment.tree.where), None)
    return None


def _finding(build: Build, fault: Mapping[str, Any], path: KeyPath) -> Finding:
    code, message, why, help = _words(build, fault, path)
    at = f" ({fault['at']})" if fault["at"] else ""
    return Finding(
        code,
        f"{message}: {_short(fault['message'])}{at}",
        _span_of(build, path),
        why=why,
        help=help,
        notes=tuple(_notes(build, fault, path)),
    )


def _words(build: Build, fault: Mapping[str, Any], path: KeyPath) -> tuple[str, str, str, str]:
    """Code, the head of the message, why it matters, one action."""
    what, slot, name = fault["what"], path[2] if len(path) > 2 else "", path[-1]
    stage = build.stage.name
    if what == "hand_off":
        start = next(start for start in build.program.inputs if start.path == path)
        source = start.source.removeprefix("stage:").partition("#")[0].partition("/")[0]
        return (
            "XC220",
            f"`{name}` can't start from `{source}`",
            "the stages before it would train, and then this one would refuse to start",
            "give both the same part, or say under `part`, `missing` and `extra` what is meant to differ",
        )
    if what == "untrained":
        return (
            "XC221",
            f"stage `{stage}`",
            "it would keep the values that it was made with",
            "let an optimizer train it, or freeze it",
        )
    if fault["batch"]:
        rows = f"{fault['batch']} row{'s' if fault['batch'] != 1 else ''}"
        return (
            "XC320",
            f"an epoch's last batch has {rows}, and the stage can't train on it",
            "it would fail at the end of the first epoch",
            "choose another `batch`, or say `drop_last: true`",
        )
    if what in _BUILT:
        subject = f"`{name}`" if len(path) > 2 else f"stage `{stage}`"
        return (
            "XC120",
            f"{subject} can't be made from these values" if what != "data" else "the data",
            "the stage would fail when it starts",
            "mend what the message names",
        )
    if slot in ("loss", "metrics") or what == "measure":
        kind = "metric" if slot == "metrics" or what == "measure" else "loss"
        subject = f"{kind} `{name}`" if len(path) > 3 else "the losses"
        return (
            "XC321",
            f"{subject} can't take what it is given" if not fault["part"] else subject,
            "the stage would fail at its first batch",
            "make answer and target of one shape, and the result one number",
        )
    subject = f"`{name}`" if slot in ("model", "heads") and len(path) > 3 else f"stage `{stage}`"
    return (
        "XC320",
        f"{subject} fails on a batch of this shape" if not fault["part"] else subject,
        "the stage would fail at its first batch",
        "make the part fit what it is given",
    )


def _short(message: str) -> str:
    return message if len(message) <= _LONG else f"{message[:_LONG].rstrip()}..."


_LONG = 200


def _notes(build: Build, fault: Mapping[str, Any], path: KeyPath) -> Iterator[Note]:
    """What a loss or a metric compares, with the shapes that were seen; and the values, where a sweep set them."""
    shapes: Mapping[str, Sequence[int]] = fault["shapes"]
    if len(path) > 3 and path[2] in ("loss", "metrics"):
        use = build.stage.maps[str(path[2])].get(str(path[3]))
        head = getattr(use.slot, "of", None) or str(path[3]) if use is not None else ""
        if f"{head}_head" in shapes:
            given = tuple(shapes[f"{head}_head"])
            yield Note(
                _span_of(build, (*build.stage.path, "heads", head)), f"the head gives {given}"
            )


def flag_values(flags: Sequence[str]) -> dict[str, str]:
    """Flags of a build, name -> text."""
    found: dict[str, str] = {}
    words = list(flags)
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not equals and words and not re.match(r"--[a-z]", words[0]):
            text = words.pop(0)
        found[name.removeprefix("--")] = text or "yes"
    return found
