"""XC2: stages, what they hand over, and when they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from expc.experiment import Experiment, Stage
from expc.findings import Edit, Finding, Note, listed, suggest
from expc.identity import Named, named
from expc.kinds.shapes import taken
from expc.lint.core import SpecRule, StageRule, ToldRule
from expc.lint.facts import gated_split, known_floor
from expc.lint.reach import further, too_near
from expc.lint.readings import (
    Edge,
    column,
    gate_of,
    logged_names,
    longer,
    metrics,
    span_of,
    terms,
    watched_splits,
)
from expc.sweep import Variant


class ExtendsNotFound(ToldRule):
    """`extends` names a file that is not there, or one that leads back here.

    ## Bad
    ```yaml
    extends: base.yaml
    ```

    ## Good
    ```yaml
    name: example
    ```
    """

    code, name = "XC201", "extends-not-found"


class StageCircle(ToldRule):
    """Stages wait for each other.

    None of them could ever start. Let one of them start from a file, or from a stage outside the circle.

    ## Bad
    ```yaml
    init: {backbone: {from: read}}
    ```

    ## Good
    ```yaml
    clip: 1.0
    ```
    """

    code, name = "XC202", "stage-circle"


class UnloggedMonitor(StageRule):
    """A monitor or a gate watches a key that the stage does not log.

    The checkpoint of the "best" value would never be written, or the run would stop after its first epoch with
    "monitor not found": one project renamed a metric and lost a night.

    ## Bad
    ```yaml
    monitor: {best: val/acuracy}
    ```

    ## Good
    ```yaml
    monitor: {best: val/accuracy}
    ```
    """

    code, name, fixable = "XC203", "unlogged-monitor", True

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        logged = logged_names(stage)
        known = set().union(*logged.values(), stage.maps.get("metrics", {}))
        for label, key in getattr(stage.shape, "monitor", {}).items():
            split, _, watched = key.rpartition("/")
            unsplit = bool(split) and split not in {"train", "val", "test", *logged}
            elsewhere = split in logged and watched not in logged[split]
            if watched not in known or unsplit or elsewhere:
                yield self._told(stage, at, ("monitor", label), key, known)
            elif split in logged and split not in watched_splits(stage):
                yield self._not_measured(stage, at, label, key)
        metric = getattr(getattr(stage.shape, "until", None), "metric", None)
        if metric and metric.rpartition("/")[2] not in known:
            yield self._told(stage, at, ("until", "metric"), metric, known)

    def _not_measured(self, stage: Stage, at: Variant, label: str, key: str) -> Finding:
        split, _, name = key.rpartition("/")
        splits = watched_splits(stage)
        choices = [each for each in stage.kind.logged(stage) if each.rpartition("/")[0] in splits]
        meant = next((each for each in choices if each.rpartition("/")[2] == name), "")
        span = at.experiment.value(*stage.path, "monitor", label)
        return self.finding(
            f"monitor `{label}` watches `{key}`, and nothing measures it when an epoch ends",
            span,
            why=f"the best weights are told apart by {listed(sorted(splits))}; {split} is logged, and no more",
            help=f"watch `{meant}`" if meant else f"watch one of {listed(choices)}",
            fix=(Edit(span, meant, safe=False),) if meant else (),
        )

    def _told(
        self, stage: Stage, at: Variant, where: tuple[str, str], key: str, known: set[str]
    ) -> Finding:
        keys = list(stage.kind.logged(stage))
        plain = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
        choices = keys if "/" in key else plain
        hint = suggest(key, choices)
        span = at.experiment.value(*stage.path, *where)
        what = "gate" if where[0] == "until" else f"monitor `{where[1]}`"
        meant = hint.split("`")[1] if hint else ""
        safe = meant.rpartition("/")[0] == key.rpartition("/")[0]
        return self.finding(
            f"{what} watches `{key}`, which stage `{stage.name}` does not log",
            span,
            why="it would wait for a number that never comes",
            help=f"{hint} (logged: {listed(choices, 5)})" if hint else f"logged: {listed(choices)}",
            fix=(Edit(span, meant, safe),) if hint else (),
        )


class UnknownStage(SpecRule):
    """A stage starts from one that is not in the spec.

    One study's third stage took whatever backbone file was newest in a shared folder, and trained on from a stranger's.

    ## Bad
    ```yaml
    init: {backbone: {from: pretrain}}
    ```

    ## Good
    ```yaml
    clip: 1.0
    ```
    """

    code, name, hides = "XC204", "unknown-stage", True

    def check(self, experiment: Experiment) -> Iterator[Finding]:
        for stage in experiment.stages.values():
            for key, part, start in taken(stage.shape):
                if start.from_ and start.from_ not in experiment.stages:
                    why = f"`{part}` of stage `{stage.name}` would have nothing to start from"
                    yield self._told(experiment, start.from_, why, stage, key, part, "from")
            measured = getattr(stage.shape, "of", None)
            if measured and measured not in experiment.stages:
                why = f"stage `{stage.name}` would have nothing to measure"
                yield self._told(experiment, measured, why, stage, "of")

    def _told(
        self, experiment: Experiment, name: str, why: str, stage: Stage, *keys: str
    ) -> Finding:
        others = [each for each in experiment.stages if each != stage.name]
        hint = suggest(name, others)
        span = experiment.value(*stage.path, *keys)
        return self.finding(
            f"there is no stage `{name}`",
            span,
            why=why,
            help=hint or (f"stages: {listed(others)}" if others else "there is no other stage"),
            fix=(Edit(span, hint.split("`")[1]),) if hint else (),
        )


class MissingFile(StageRule):
    """A file that the spec names is not there.

    Hours of the first stages were spent before the third found its data missing.

    ## Bad
    ```yaml
    init: {backbone: {file: weights/backbone.safetensors}}
    ```

    ## Good
    ```yaml
    clip: 1.0
    ```
    """

    code, name = "XC205", "missing-file"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        weights = (
            Named(start.file, (*stage.path, key, part, "file"), pattern=False)
            for key, part, start in taken(stage.shape)
            if start.file
        )
        root = at.experiment.root
        for each in (*weights, *(each for use in stage.every_use() for each in named(use))):
            if not any((root / path).is_file() for path in each.spread(root)):
                yield self.finding(
                    f"there is no file `{each.name}`",
                    at.experiment.value(*each.at),
                    why=f"stage `{stage.name}` would stop at its start",
                    help="paths are relative to the project root",
                )


class GateOnTrain(StageRule):
    """A threshold is measured on the rows that the stage trains on.

    Thresholds were reached and generalisation stayed unknown; one such gate opened at 0.9903 while the held-out
    accuracy was 0.8632, below the constant's 0.9021. Right where the training rows are all the rows there are: then
    allow it, and say so.

    ## Bad
    ```yaml
    until: {metric: accuracy, on: train, at_least: 0.97, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```
    """

    code, name, severity = "XC206", "gate-on-train", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = gate_of(stage)
        if until is None or not until.metric:
            return
        split = until.metric.rpartition("/")[0] or until.on
        if split == "train":
            yield self.finding(
                f"the gate measures `{until.metric}` on the rows it trains on",
                at.experiment.value(
                    *stage.path, "until", "on" if until.on == "train" else "metric"
                ),
                why="a net that has learned its rows by heart passes",
                help="measure it `on: val`; allow it where these rows are all there are",
            )


class NoHeldOutRows(StageRule):
    """Something is measured on a split that holds no rows.

    Early stopping, thresholds and the best checkpoint need rows that were not trained on.

    ## Bad
    ```yaml
    data: {use: digits, batch: 64}
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.2}}
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```
    """

    code, name = "XC207", "no-held-out-rows"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        held = set(logged_names(stage)) | {"train"}
        for path, key, default in _watched(stage):
            split = key.rpartition("/")[0] or default
            if split in ("val", "test") and split not in held:
                what = f"`{key}` is measured on {split}"
                yield self._told(at, (*stage.path, *path), what, _rows(stage, split))
        measured = stage.maps.get("metrics", {})
        if measured and not held & {"val", "test"} and not _gates_on_train(stage):
            first = next(iter(measured.values()))
            what = f"metric `{first.path[-1]}` is measured"
            yield self._told(at, first.path, what, _rows(stage, "val"))

    def _told(self, at: Variant, path: tuple[str | int, ...], what: str, help: str) -> Finding:
        return self.finding(
            f"{what}, and no rows are held out",
            at.experiment.key(*path) if path[-2] == "metrics" else at.experiment.value(*path),
            why="there would be no number to look at",
            help=help,
        )


def _rows(stage: Stage, split: str) -> str:
    """How to measure on a split, or what is measured where there are no rows."""
    if "data" in type(stage.shape).model_fields:
        return f"hold rows out: `data: {{split: {{{split}: 0.2}}}}`"
    usual = stage.kind.measured
    return f"this stage measures {listed(f'{usual}/{name}' for name in sorted(logged_names(stage)[usual]))}"


def _watched(stage: Stage) -> Iterator[tuple[tuple[str, ...], str, str]]:
    for label, key in getattr(stage.shape, "monitor", {}).items():
        yield ("monitor", label), key, stage.kind.measured
    until = gate_of(stage)
    if until is not None and until.metric:
        yield ("until", "metric"), until.metric, until.on


def _gates_on_train(stage: Stage) -> bool:
    until = gate_of(stage)
    return until is not None and until.metric is not None and until.on == "train"


def _majority(prior: float, classes: int | None) -> float:
    return prior if classes else max(prior, 1 - prior)


def _entropy(prior: float, classes: int | None) -> float | None:
    if classes or not 0 < prior < 1:
        return None
    return -prior * math.log(prior) - (1 - prior) * math.log(1 - prior)


_CONSTANTS: Mapping[str, Callable[[float, int | None], float | None]] = {
    "constant_by_majority": _majority,
    "constant_by_variance": lambda p, classes: None if classes else p * (1 - p),
    "constant_by_entropy": _entropy,
    "constant_all_yes": lambda p, classes: None if classes else 2 * p / (1 + p),
}
"""Trait -> what the best constant answer scores, from the share of the largest class, or of yes."""


class GatePassedByConstant(StageRule):
    """A constant answer passes the gate, or nearly.

    94.5 to 95.3 % of one stage's bits were 0, so "always no" scored 0.945 and the gate stood at 0.95: it opened at
    once, and what it let through had learned next to nothing. The floor is computed from what the data source says of
    its columns; a threshold must lie well beyond it. Where the data was profiled, XC602 knows better.

    ## Bad
    ```yaml
    heads:
      zero: {use: linear_head, out: 1}
    loss:
      zero: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: zero}
    until: {metric: accuracy, at_least: 0.9, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    heads:
      zero: {use: linear_head, out: 1}
    loss:
      zero: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: zero}
    until: {metric: accuracy, at_least: 0.98, budget: {epochs: 12}}
    ```
    """

    code, name = "XC208", "gate-passed-by-constant"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = gate_of(stage)
        program = at.programs.get(stage.name)
        if until is None or program is None or not until.metric or until.bound is None:
            return
        key = until.metric.rpartition("/")[2]
        for edge in (*metrics(program), *terms(program)):
            floor = _floor(stage, edge) if edge.key == key else None
            if floor is None:
                continue
            if known_floor(stage, at, edge, gated_split(until)) is not None:
                continue
            says = too_near(*until.bound, floor)
            if says:
                yield self._told(stage, at, edge, says, floor)

    def _told(self, stage: Stage, at: Variant, edge: Edge, says: str, floor: float) -> Finding:
        until = gate_of(stage)
        assert until is not None and until.bound is not None
        word, bound = until.bound
        return self.finding(
            f"a constant answer {says}: it scores {floor:.3f} on `{edge.key}`, and `{word}` is {bound:g}",
            at.experiment.value(*stage.path, "until", word),
            why=f"column `{edge.target}` is so uneven that the gate would open on a net that learned nothing",
            help=further(word, floor),
            notes=(Note(at.experiment.key(*edge.op.path), f"`{edge.key}` is measured here"),),
        )


def _floor(stage: Stage, edge: Edge) -> float | None:
    use = stage.maps.get(str(edge.op.path[-2]), {}).get(edge.key)
    known = column(stage, edge.target)
    if use is None or known is None or known.prior is None:
        return None
    if "pos_weight" in use.written or not 0 < getattr(use.params, "threshold", 0.5) < 1:
        return None
    for trait, score in _CONSTANTS.items():
        if trait in use.component.traits:
            return score(known.prior, known.classes)
    return None


class UntilWithoutEnd(ToldRule):
    """`until` names no clock, two clocks, a metric without a bound, or a bound without a metric.

    A stage ends when one named clock has run out, or when one metric has passed one bound before that.

    ## Bad
    ```yaml
    until: {metric: accuracy, at_least: 0.97}
    ```

    ## Good
    ```yaml
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```
    """

    code, name = "XC209", "until-without-end"


class PatienceBeyondBudget(StageRule):
    """Patience lasts as long as the budget, so it never ends anything.

    It reads like early stopping, and there is none.

    ## Bad
    ```yaml
    until: {metric: accuracy, at_least: 0.97, patience: 20, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    until: {metric: accuracy, at_least: 0.97, patience: 4, budget: {epochs: 12}}
    ```
    """

    code, name, severity = "XC210", "patience-beyond-budget", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = gate_of(stage)
        budget = span_of(until.clock) if until is not None and until.clock else None
        if until is None or until.patience is None or budget is None:
            return
        clock, amount = budget
        if clock == "epochs" and until.patience >= amount:
            yield self.finding(
                f"patience of {until.patience} epochs never runs out in {amount:g}",
                at.experiment.value(*stage.path, "until", "patience"),
                why="it reads like early stopping, and there is none",
                help=f"set it below {amount:g}, or leave it out",
            )


class CheckpointAfterTheEnd(StageRule):
    """The first timed checkpoint is due after the stage has ended.

    One sweep's first save came an hour in; every run that failed before had left nothing, and its evaluation failed
    with "missing checkpoint".

    ## Bad
    ```yaml
    checkpoint: {every: {epochs: 20}}
    ```

    ## Good
    ```yaml
    checkpoint: {every: {epochs: 4}}
    ```
    """

    code, name, severity = "XC211", "checkpoint-after-the-end", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = getattr(stage.shape, "until", None)
        every = getattr(getattr(stage.shape, "checkpoint", None), "every", None)
        if until is None or every is None or until.clock is None:
            return
        if longer(stage, every, until.clock):
            clock, amount = span_of(every) or ("", 0)
            yield self.finding(
                f"a checkpoint every {amount:g} {clock} is never due before this stage ends",
                at.experiment.value(*stage.path, "checkpoint", "every", clock),
                why="a run that fails late would leave only its start",
                help="save several times within the budget",
            )


class MonitorNeeded(StageRule):
    """Several losses are trained, and nothing says whose best is kept.

    One summed loss picked the checkpoint of two heads: the value head overfitted from epoch 11, the policy improved
    until 21, the sum was least at 16, and the file was best for neither.

    ## Bad
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce}
    ```

    ## Good
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce}
    monitor: {digit: val/digit, loop: val/loop}
    ```
    """

    code, name, severity = "XC212", "monitor-needed", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        losses = stage.maps.get("loss", {})
        heads = stage.maps.get("heads")  # losses of one model of the world are no rivals
        if heads and len(losses) > 1 and not getattr(stage.shape, "monitor", True):
            watch = ", ".join(f"{key}: val/{key}" for key in losses)
            yield self.finding(
                f"{len(losses)} losses are trained, and no `monitor` says whose best is kept",
                at.experiment.key(*stage.path, "loss"),
                why="the last weights may be best for none of them",
                help=f"add `monitor: {{{watch}}}`",
            )


class UnknownPart(SpecRule):
    """A part starts from weights, and the net has no part of that name; or it takes a part that the other has not.

    The optimizer would train a random part that the spec says was pre-trained. Parts are the entries of `model`, and
    `heads.NAME` for each head.

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
        init: {bakbone: {from: first}}
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
        init: {backbone: {from: first}}
    ```
    """

    code, name = "XC213", "unknown-part"

    def check(self, experiment: Experiment) -> Iterator[Finding]:
        """The part that is taken. The lowering tells of one that would take it and is not there."""
        for stage in experiment.stages.values():
            for key, part, start in taken(stage.shape):
                there = experiment.stages.get(start.from_ or "")
                given = start.part or part
                if there is not None and part in stage.parts and given not in there.parts:
                    path = (*stage.path, key, part, "part" if start.part else "from")
                    hint = suggest(given, there.parts)
                    parts = f"parts: {listed(there.parts)}"
                    if hint and not start.part:
                        hint = f"say which with `part:`; {hint}"
                    yield self.finding(
                        f"stage `{there.name}` has no part `{given}` to give",
                        experiment.value(*path),
                        why=f"`{part}` of stage `{stage.name}` would start at random",
                        help=f"{hint} ({parts})"
                        if hint
                        else f"say `part:` with one of its {parts}",
                    )


class UnknownBest(SpecRule):
    """`init` asks for the best weights under a name that the other stage does not monitor.

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
        monitor: {digit: val/digit}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        init: {backbone: {from: first, best: accuracy}}
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
        monitor: {digit: val/digit}
      second:
        kind: supervised
        data: {use: digits, batch: 64, split: {val: 0.2}}
        heads: {digit: {use: linear_head, out: 10}}
        loss: {digit: {use: cross_entropy}}
        optim: {use: adamw}
        until: {epochs: 3}
        init: {backbone: {from: first, best: digit}}
    ```
    """

    code, name = "XC214", "unknown-best"

    def check(self, experiment: Experiment) -> Iterator[Finding]:
        for stage in experiment.stages.values():
            for key, part, start in taken(stage.shape):
                other = experiment.stages.get(start.from_ or "")
                watched = getattr(other.shape, "monitor", {}) if other is not None else {}
                if other is not None and start.best and start.best not in watched:
                    known = f"monitored: {listed(watched)}" if watched else "it monitors nothing"
                    yield self.finding(
                        f"stage `{other.name}` keeps no best `{start.best}`",
                        experiment.value(*stage.path, key, part, "best"),
                        why="the stage would stop for want of its starting weights",
                        help=suggest(start.best, watched)
                        or f"{known}; leave `best` out for the last",
                    )
