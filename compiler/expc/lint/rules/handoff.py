"""XC2: what stages hand over, what of it is trained, and what nobody takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from expc.components.core import Use
from expc.experiment import Experiment, Stage
from expc.findings import Finding, Note, listed
from expc.ir import Program
from expc.kinds.shapes import Init, taken
from expc.lint.core import StageRule, SweepRule
from expc.resolve import Document
from expc.sweep import Space, Variant


def _frozen(stage: Stage) -> Mapping[str, Init]:
    parts: Mapping[str, Init] = getattr(stage.shape, "frozen", {})
    return parts


def _trains(stage: Stage) -> list[str] | None:
    """The parts that the optimizer names; None where it names none, or covers something else."""
    use = stage.uses.get("optim")
    names: list[str] | None = getattr(use.slot, "trains", None) if use is not None else None
    return names


class PartLeftOut(StageRule):
    """The optimizer leaves out parts that are not frozen.

    Such a part stays what the random start made it. One project built its optimizer from the backbone's parameters
    alone: the head never learned, the backbone learned around it, and the gate opened all the same, at 0.976 instead of
    0.990. No threshold shows it.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, trains: [backbone]}
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, trains: [backbone, heads.digit]}
    ```
    """

    code, name = "XC218", "part-left-out"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        names = _trains(stage)
        if names is None or not set(names) <= set(stage.parts):
            return  # a name that is no part is told, and was meant to be one of these
        left = [part for part in stage.parts if part not in names and part not in _frozen(stage)]
        if left:
            started = all(part in getattr(stage.shape, "init", {}) for part in left)
            made = "its start" if started else "the random start"
            yield self.finding(
                f"the optimizer leaves out {listed(left)}",
                at.experiment.value(*stage.path, "optim", "trains"),
                why=f"it stays what {made} made it, and the rest learns around it",
                help=f"add it, leave `trains` out, or freeze it: `frozen: {{{left[0]}: {{from: ...}}}}`",
            )


class NothingTrained(StageRule):
    """Every part that the optimizer could move is frozen.

    The stage would end with the weights it began with. To measure a net, let a stage of `kind: evaluate` do it.

    ## Bad
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        frozen: {backbone: {from: first}, heads.digit: {from: first}}
    ```

    ## Good
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        frozen: {backbone: {from: first}}
    ```
    """

    code, name = "XC219", "nothing-trained"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        frozen = _frozen(stage)
        named = _trains(stage)
        if frozen and all(part in frozen for part in (named or stage.parts)):
            what = "every part that the optimizer names is" if named else "all parts are"
            yield self.finding(
                f"{what} frozen, so stage `{stage.name}` trains nothing",
                at.experiment.key(*stage.path, "frozen"),
                why="it would end with the weights it began with",
                help="leave one of them out of `frozen`",
            )


class FrozenAndStarted(StageRule):
    """A part is frozen, and something else is to be done with it: started from other weights, or trained.

    One of the two would be ignored. Nor may a frozen part lack tensors (`missing`): they begin at random, and nothing
    would train them.

    ## Bad
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        init: {backbone: {from: first}}
        frozen: {backbone: {from: first}}
    ```

    ## Good
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        frozen: {backbone: {from: first}}
    ```
    """

    code, name = "XC222", "frozen-and-started"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        names = _trains(stage) or []
        if names and all(part in _frozen(stage) for part in names):
            return  # then nothing is trained, which is told
        for part, start in _frozen(stage).items():
            if part in getattr(stage.shape, "init", {}):
                yield self._told(part, "starts from weights of its own", "init", at, stage)
            elif part in names:
                yield self._told(part, "is trained", "trains", at, stage)
            if start.missing:
                yield self.finding(
                    f"`{part}` is frozen, and may start without {listed(start.missing)}",
                    at.experiment.key(*stage.path, "frozen", part, "missing"),
                    why="what lacks begins at random, and nothing trains it",
                    help="start the part in `init`, or freeze one that is whole",
                )

    def _told(self, part: str, what: str, key: str, at: Variant, stage: Stage) -> Finding:
        other = ("init", part) if key == "init" else ("optim", "trains")
        return self.finding(
            f"`{part}` is frozen, and {what}",
            at.experiment.key(*stage.path, "frozen", part),
            why="a frozen part has the weights that it is frozen with, throughout",
            help=f"take it out of `frozen`, or out of `{key}`",
            notes=(Note(at.experiment.key(*stage.path, *other), "the other is here"),),
        )


class FewerInputs(StageRule):
    """A stage gives a shared part fewer inputs than another stage does.

    The part then learns, and is handed on, as if the missing input were nothing: for months two stages of one project
    passed no hand pieces to a net whose third stage relied on them.

    ```text data/boards.npz
    ```

    ## Bad
    ```yaml whole
    expc: 1
    name: example
    about: Does learning where pieces can go help to rate boards?
    model:
      backbone: {use: resnet, channels: [16, 32, 64, 64]}
    stages:
      first:
        kind: supervised
        data: {use: arrays, file: data/boards.npz, columns: {board: features, rated: prob}, batch: 64, split: {val: 0.2}}
        heads: {rated: {use: linear_head, out: 1}}
        loss: {rated: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: shogi.reachable_squares, batch: 32, split: {val: 0.2}}
        init: {backbone: {from: first, missing: [hand_projection.weight, hand_projection.bias]}}
        heads: {reachable: {use: linear_head, out: 81}}
        loss: {reachable: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
    ```

    ## Good
    ```yaml whole
    expc: 1
    name: example
    about: Does learning where pieces can go help to rate boards?
    model:
      backbone: {use: resnet, channels: [16, 32, 64, 64]}
    stages:
      first:
        kind: supervised
        data: {use: arrays, file: data/boards.npz, columns: {board: features, hand: features, rated: prob}, batch: 64, split: {val: 0.2}}
        heads: {rated: {use: linear_head, out: 1}}
        loss: {rated: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: shogi.reachable_squares, batch: 32, split: {val: 0.2}}
        init: {backbone: {from: first}}
        heads: {reachable: {use: linear_head, out: 81}}
        loss: {reachable: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
    ```
    """

    code, name = "XC223", "fewer-inputs"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        mine = _inputs(at.programs.get(stage.name))
        part = next(iter(stage.maps.get("model", {})), "")
        for name, other in at.experiment.stages.items():
            if name in at.condition.skips or part not in _shared(at.experiment, stage, other):
                continue
            theirs = _inputs(at.programs.get(name))
            if mine and len(theirs) > len(mine):
                lost = [each for each in theirs if each not in mine]
                yield self.finding(
                    f"`{part}` reads {listed(mine)} here, and {listed(theirs)} in stage `{name}`",
                    at.experiment.key(*stage.path, "data"),
                    why=f"it learns here as if {listed(lost)} said nothing, and is one net for both",
                    help=f"give it {listed(lost)} here too: `data: {{inputs: {{{lost[0]}: ...}}}}`",
                    notes=(Note(at.experiment.key(*other.path, "data"), "it reads more here"),),
                )
                return


def _inputs(program: Program | None) -> list[str]:
    """What the forward pass of a program takes, by name."""
    routines = program.routines if program is not None else ()
    forward = next((routine for routine in routines if routine.name == "forward"), None)
    return [value.name for value in forward.ins] if forward is not None else []


def _shared(experiment: Experiment, one: Stage, other: Stage) -> list[str]:
    """Parts declared once, at the top, that two stages have alike."""
    declared = experiment.tree.get(("model",)) or {}
    return [
        part
        for part in declared
        if one is not other and _alike(one.maps.get("model", {}), other.maps.get("model", {}), part)
    ]


def _alike(one: Mapping[str, Use], other: Mapping[str, Use], part: str) -> bool:
    mine, theirs = one.get(part), other.get(part)
    if mine is None or theirs is None:
        return False
    return mine.component.target == theirs.component.target and mine.params == theirs.params


class UnusedStage(SweepRule):
    """A stage trains a shared part, a later one has that part too, and nobody takes what was trained.

    The later stage starts at random, as if the earlier were not there: hours for nothing, and a report that credits
    them. One project's third stage took a stale file in place of what its second had just made.

    ## Bad
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {zero: {use: linear_head, out: 1}}
        loss: {zero: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
    ```

    ## Good
    ```yaml
    stages:
      first:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {zero: {use: linear_head, out: 1}}
        loss: {zero: {use: bce}}
        optim: {use: adamw}
        until: {epochs: 3}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        init: {backbone: {from: first}}
    ```
    """

    code, name, severity = "XC224", "unused-stage", "warning"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        for name, stage in experiment.stages.items():
            running = [v for v in space.variants if name not in v.condition.skips]
            if not running or any(_is_taken(name, variant) for variant in running):
                continue
            later = next((found for v in running if (found := _later(v, stage))), None)
            if later is not None:
                part = _shared(experiment, stage, later)[0]
                yield self.finding(
                    f"stage `{name}` trains `{part}`, and no stage takes it",
                    experiment.key(*stage.path),
                    why=f"stage `{later.name}` has it too, and starts at random",
                    help=f"add `init: {{{part}: {{from: {name}}}}}` to `{later.name}`; allow it where both stand alone",
                    notes=(Note(experiment.key(*later.path), "the later stage"),),
                )


def _is_taken(name: str, variant: Variant) -> bool:
    """Whether a stage that runs takes something of it, or measures it."""
    stages = variant.experiment.stages
    return any(
        name in stage.parents
        for other, stage in stages.items()
        if other not in variant.condition.skips
    )


def _later(variant: Variant, stage: Stage) -> Stage | None:
    """The first stage that runs after it, has a part of it, and takes that from no file.

    One that takes something of a stage that is skipped does not run.
    """
    stages = list(variant.experiment.stages)
    for name in stages[stages.index(stage.name) + 1 :]:
        other = variant.experiment.stages[name]
        files = {part for _, part, start in taken(other.shape) if start.file}
        shared = _shared(variant.experiment, stage, other)
        idle = variant.condition.skips & {name, *other.parents}
        if not idle and set(shared) - files:
            return other
    return None
