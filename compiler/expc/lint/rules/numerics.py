"""XC4: numbers: precision, rates, schedules, and knobs that turn nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from expc.components.core import Use
from expc.experiment import Experiment, Stage
from expc.findings import Finding, Span
from expc.ir import ClassLogits
from expc.lint.core import StageRule, SweepRule
from expc.lint.readings import (
    epoch_updates,
    gate_of,
    in_updates,
    longer,
    metrics,
    optimizers,
    span_of,
)
from expc.resolve import Document
from expc.source import KeyPath
from expc.sweep import Axis, Space, Variant

SMALLEST_HALF = 2.0**-24
"""The smallest number above 0 that half precision has (subnormal); half of it or less becomes 0."""


class EpsZeroInHalf(StageRule):
    """An epsilon is 0 in half precision.

    float16 has nothing between 0 and 6.0e-8, so 1e-8 guards nothing there: a distillation's first step was 0/0 = NaN at
    every learning rate and with clipping, because AdamW's eps of 1e-8 was 0 in a net cast to half; a world model's
    sampler drew log(0) about once in two thousand updates for the same reason. Neither was found for days. Under `16-mixed`
    our own optimizers step in float32, so this warns of what the value does elsewhere: in your own code, or in half.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 1.0e-3, eps: 1.0e-8}
    precision: 16-mixed
    clip: 1.0
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 1.0e-3, eps: 1.0e-6}
    precision: 16-mixed
    clip: 1.0
    ```
    """

    code, name, severity = "XC401", "eps-zero-in-half", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        if getattr(stage.shape, "precision", None) != "16-mixed":
            return
        for use in stage.every_use():
            for key in use.written:
                value = use.param(key)
                if "eps" in key.split("_") and isinstance(value, float) and _vanishes(value):
                    yield self.finding(
                        f"`{key}: {value:.1e}` of `{use.name}` is 0 in half precision",
                        at.experiment.value(*use.path, key),
                        why=_why(use),
                        help="use 1.0e-6 or more",
                    )


def _why(use: Use) -> str:
    nothing = f"float16 has nothing between 0 and {SMALLEST_HALF:.1e}"
    if use.component.family == "optim" and not use.component.own:
        return f"{nothing}; steps are float32 here, but a net that is cast to half divides by 0 with it"
    return f"{nothing}: where it is used in half, it guards against nothing"


def _vanishes(value: float) -> bool:
    return 0 < value < SMALLEST_HALF


class RateTooHigh(StageRule):
    """A learning rate is likely to diverge.

    With momentum m the step settles at lr / (1 - m): 0.05 with momentum 0.9 moves weights as 0.5 would without. Adam
    moves every weight by about lr a step, whatever the gradient. A clip bounds a step, so that nothing blows up; but a
    rate that large must fall at some time, or the weights that are kept are those of a random moment.

    ## Bad
    ```yaml
    optim: {use: sgd, lr: 0.05, momentum: 0.9}
    ```

    ## Good
    ```yaml
    optim: {use: sgd, lr: 0.05, momentum: 0.9}
    schedule: {use: cosine, warmup: {epochs: 1}}
    clip: 1.0
    ```
    """

    code, name, severity = "XC402", "rate-too-high", "warning"

    SGD_LIMIT = 0.5
    ADAM_LIMIT = 0.05

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for use in optimizers(stage):
            yield from self._of(use, stage, at)

    def _of(self, use: Use, stage: Stage, at: Variant) -> Iterator[Finding]:
        rate = getattr(use.params, "lr", None)
        if not isinstance(rate, int | float):
            return
        span = at.experiment.value(*use.path, "lr")
        momentum = getattr(use.params, "momentum", None)
        clipped = _clip(use, stage) is not None
        if isinstance(momentum, float):
            effective = rate / (1 - momentum)
            settles = clipped and stage.uses.get("schedule") is not None
            if effective > self.SGD_LIMIT * (1 - 1e-9) and not settles:
                yield self._too_far(rate, momentum, effective, clipped, span)
        elif hasattr(use.params, "betas") and rate > self.ADAM_LIMIT:
            yield self.finding(
                f"lr {rate:g} moves every weight by about {rate:g} a step",
                span,
                why="Adam's step has the size of the rate, whatever the gradient; clipping does not change it",
                help="3.0e-4 to 3.0e-3 is usual",
            )

    def _too_far(
        self, rate: float, momentum: float, effective: float, clipped: bool, span: Span
    ) -> Finding:
        like = f"lr {rate:g}"
        like += f" with momentum {momentum:g} moves like {effective:.2g}" if momentum else ""
        if clipped:
            return self.finding(
                f"{like}, from the first step to the last",
                span,
                why="clipping bounds a step; with steps this long the weights never come to rest",
                help="add `schedule: {use: cosine, warmup: {epochs: 1}}`, or lower the rate",
            )
        return self.finding(
            f"{like}, and nothing clips it",
            span,
            why=f"steps of {self.SGD_LIMIT:g} and more diverge on most nets before a warm-up ends",
            help="add `clip: 1.0` and a schedule, or lower the rate",
        )


def _clip(use: Use, stage: Stage) -> float | None:
    """The largest gradient norm of an optimizer, which stands beside it or beside the only one."""
    beside: float | None = getattr(use.slot, "clip", None)
    return beside if beside is not None else getattr(stage.shape, "clip", None)


class SixteenWithoutClip(StageRule):
    """Half precision, and the gradient is not clipped.

    float16 ends at 65,504. The loss scaler skips a step that overflows, but a gradient just below tears the weights.
    bfloat16 has the range of float32 and needs none of this.

    ## Bad
    ```yaml
    precision: 16-mixed
    ```

    ## Good
    ```yaml
    precision: 16-mixed
    clip: 1.0
    ```
    """

    code, name, severity = "XC403", "sixteen-without-clip", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        if getattr(stage.shape, "precision", None) != "16-mixed":
            return
        free = [use for use in optimizers(stage) if _clip(use, stage) is None]
        if free:
            several = "optim" in stage.maps
            whose = f" for optimizer `{free[0].path[-1]}`" if several else ""
            beside = f" to `optim.{free[0].path[-1]}`" if several else ""
            yield self.finding(
                f"`16-mixed` without `clip`{whose}",
                at.experiment.value(*stage.path, "precision"),
                why="float16 ends at 65,504; one large gradient is enough",
                help=f"add `clip: 1.0`{beside}, or use `bf16-mixed`",
            )


class WarmupBeyondBudget(StageRule):
    """The warm-up lasts as long as the budget, so the learning rate never arrives.

    A teacher's schedule was over after 1,000 steps of a run ten times as long; this is the same mistake the other way
    round. The rate on the page is not the rate that trains.

    ## Bad
    ```yaml
    schedule: {use: cosine, warmup: {epochs: 12}}
    ```

    ## Good
    ```yaml
    schedule: {use: cosine, warmup: {epochs: 1}}
    ```
    """

    code, name = "XC404", "warmup-beyond-budget"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use = stage.uses.get("schedule")
        until = getattr(stage.shape, "until", None)
        warmup = getattr(use.params, "warmup", None) if use is not None else None
        span = span_of(warmup)
        if use is None or until is None or until.clock is None or span is None:
            return
        if not longer(stage, until.clock, warmup) and _comparable(stage, span, until.clock):
            yield self.finding(
                f"a warm-up of {span[1]:g} {span[0]} does not end before the stage does",
                at.experiment.value(*use.path, "warmup", span[0]),
                why="the learning rate on the page would never be reached",
                help="a warm-up is usually 1 to 10 % of the budget",
            )


def _comparable(stage: Stage, span: tuple[str, float], clock: object) -> bool:
    other = span_of(clock)
    same = other is not None and other[0] == span[0]
    return same or None not in (in_updates(stage, span), in_updates(stage, other))


class AccumulateBeyondEpoch(StageRule):
    """One optimizer step takes more batches than an epoch has.

    Gradients of an epoch's end and of the next one's start are added up, and the weights move less than once an epoch.

    ## Bad
    ```yaml
    accumulate: 50
    ```

    ## Good
    ```yaml
    accumulate: 2
    ```
    """

    code, name, severity = "XC405", "accumulate-beyond-epoch", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        accumulate = getattr(stage.shape, "accumulate", 1)
        batches = epoch_updates(stage)
        if batches is not None and accumulate > batches:
            yield self.finding(
                f"a step takes {accumulate} batches, and an epoch has {batches}",
                at.experiment.value(*stage.path, "accumulate"),
                why="the weights would move less than once an epoch",
                help=f"set it to {batches} or less, or use smaller batches",
            )


class DecayOnNorms(StageRule):
    """Weight decay pulls on the scales of norm layers.

    A scale that shrinks to 0 switches its channel off, and nothing in the loss says so.

    ## Bad
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, weight_decay: 0.1, decay: all}
    ```

    ## Good
    ```yaml
    optim: {use: adamw, lr: 3.0e-3, weight_decay: 0.1, decay: weights}
    ```
    """

    code, name, severity = "XC406", "decay-on-norms", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        normed = [name for name, part in stage.maps.get("model", {}).items() if _normed(part)]
        for use in optimizers(stage):
            everything = getattr(use.slot, "decay", None) == "all"
            if not (normed and everything and getattr(use.params, "weight_decay", 0)):
                continue
            yield self.finding(
                f"weight decay pulls on the norm layers of `{normed[0]}`",
                at.experiment.value(*use.path, "decay"),
                why="a scale that shrinks to 0 switches its channel off",
                help="use `decay: weights`",
            )


def _normed(use: Use) -> bool:
    norms = use.component.traits & {"norm", "layer_norm"}
    return bool(norms) and bool(getattr(use.params, "norm", True))


class DecayInTheGradient(StageRule):
    """An L2 penalty is as large as the gradient it is added to.

    `sgd` and `adam` add `weight_decay` times the weights to the gradient. At 0.01 that is a pull of about 1 on a net whose
    weights have a norm of 100: in the study that this rule comes from it was 17 times the gradient of the policy and 57
    times that of the value, and the net learned to be small. `adamw` decays apart from the gradient, where 0.01 is usual.

    ## Bad
    ```yaml
    optim: {use: sgd, lr: 0.01, momentum: 0.9, weight_decay: 0.01}
    ```

    ## Good
    ```yaml
    optim: {use: sgd, lr: 0.01, momentum: 0.9, weight_decay: 1.0e-4}
    ```
    """

    code, name, severity = "XC408", "decay-in-the-gradient", "warning"

    LIMIT = 5e-3

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for use in optimizers(stage):
            decay = getattr(use.params, "weight_decay", 0.0)
            if "adds_decay_to_gradient" in use.component.traits and decay >= self.LIMIT:
                yield self.finding(
                    f"`{use.name}` adds {decay:g} times the weights to every gradient",
                    at.experiment.value(*use.path, "weight_decay"),
                    why="a loss whose gradient is smaller than that is not learned; the weights only shrink",
                    help="1.0e-4 is usual here; `adamw` decays apart from the gradient",
                )


class DeadKnob(SweepRule):
    """A value is set, and what it belongs to is off.

    A knob that turns nothing is worse than none: a sweep over it compares equal runs, and a paper reports it as a
    choice. One world model had five of them (`max_seg_len`, `temp`, `imag_boundary` and two more). A value is told only
    where it does nothing in every condition that has it.

    ## Bad
    ```yaml
    until: {epochs: 12, patience: 4}
    ```

    ## Good
    ```yaml
    until: {epochs: 12}
    ```
    """

    code, name = "XC407", "dead-knob"

    def check(self, document: Document, experiment: Experiment, space: Space) -> Iterator[Finding]:
        written = [(at, _written(at, space.loops)) for at in space.variants]
        for at, knobs in written:
            for knob, off in knobs.items():
                if off and all(other.get(knob, off) for _, other in written):
                    yield self._told(*knob, at, off)

    def _told(self, path: KeyPath, span: Span, at: Variant, off: str) -> Finding:
        condition = at.condition.name if _is_of(at, span) else ""
        where = f"in condition `{condition}`" if condition else "here"
        return self.finding(
            f"`{path[-1]}` does nothing {where}: {off}",
            span,
            why="it reads like a choice, and the run is the same without it",
            help=f"leave `{path[-1]}` out, or turn on what it belongs to",
        )


def _is_of(at: Variant, span: Span) -> bool:
    """Whether the condition of a variant wrote something there."""
    return any(override.span == span for override in at.condition.overrides)


def _written(at: Variant, loops: Sequence[Axis]) -> dict[tuple[KeyPath, Span], str]:
    """What the spec or a condition sets in the stages that run, and what turns it off; "" where nothing does.

    The axes of a sweep are left out, and so is what one of them may turn on.
    """
    experiment = at.experiment
    off: dict[KeyPath, tuple[str, KeyPath]] = {}
    for name, stage in experiment.stages.items():
        if name not in at.condition.skips:
            off |= {path: (says, by) for path, says, by in _dead(stage, at)}
    found = {}
    for path, place in experiment.tree.where.items():
        swept = place.origin == "sweep" and not _is_of(at, place.key)
        if place.origin == "default" or swept or (path[1:2] and path[1] in at.condition.skips):
            continue
        says, by = off.get(path, ("", ()))
        turned = bool(by) and any(axis.meets(experiment, [by]) for axis in loops)
        found[path, place.key] = "" if turned else says
    return found


def _as_yaml(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _dead(stage: Stage, at: Variant) -> Iterator[tuple[KeyPath, str, KeyPath]]:
    """Paths that are without effect, if somebody wrote them, what is off, and the path that turns it on."""
    until = gate_of(stage)
    gate = (*stage.path, "until", "metric")
    if until is not None and not until.metric:
        for key in ("patience", "otherwise", "on", "mode"):
            yield (*stage.path, "until", key), "`until` has no metric", gate
    for use in stage.every_use():
        off = use.component.off(use.params) if use.component.off is not None else {}
        for key, by in off.items():
            yield (
                (*use.path, key),
                f"`{by}: {_as_yaml(use.param(by))}` turns it off",
                (*use.path, by),
            )
    data = stage.uses.get("data")
    if data is not None:
        if not data.slot.split.val and not data.slot.split.test:
            split, limit = (*data.path, "split"), data.slot.limit
            if limit is None:
                yield (*split, "seed"), "no rows are held out", split
            if limit is None or limit.groups is None:
                yield (*split, "by"), "no rows are held out", split
        first = next(iter(stage.maps.get("model", {}).values()), None)
        for name in data.slot.inputs if first is not None else ():
            taken = first.component.inputs + first.component.optional if first is not None else ()
            if first is not None and taken and name not in taken:
                part = first.path[-1]
                says = f"model part `{part}` takes no `{name}`"
                yield (*data.path, "inputs", name), says, first.path
    for optim in optimizers(stage):
        if not getattr(optim.params, "weight_decay", 0):
            yield (*optim.path, "decay"), "weight decay is 0", (*optim.path, "weight_decay")
    program = at.programs.get(stage.name)
    for edge in metrics(program) if program is not None else ():
        if edge.reads is ClassLogits:
            for key in ("threshold", "reads"):
                yield (*edge.op.path, key), "the class with the most votes is the answer", ()
