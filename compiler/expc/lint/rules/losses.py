"""XC3: heads, losses and metrics: what they give, read and compare."""

from __future__ import annotations

import math
from collections.abc import Iterator

from expc.components.core import Column, Use
from expc.experiment import Stage
from expc.findings import Edit, Finding, Note
from expc.ir import BinaryLogits, ClassId, ClassLogits, Prob
from expc.kinds.shapes import taken
from expc.lint.core import StageRule, ToldRule
from expc.lint.facts import known_column
from expc.lint.readings import Edge, column, metrics, terms
from expc.source import KeyPath
from expc.sweep import Variant


class BceOnProbabilities(ToldRule):
    """A loss or metric reads logits, and the head gives probabilities; or any other pair that does not fit.

    A sigmoid applied twice squeezes every answer into 0.5 to 0.73: the loss sits near 0.69 and the run looks like one
    with a bad learning rate.

    ## Bad
    ```yaml
    heads:
      loop: {use: linear_head, out: 1, gives: prob}
    loss:
      loop: {use: bce}
    metrics:
      loop_brier: {use: brier, of: loop}
    ```

    ## Good
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
    metrics:
      loop_brier: {use: brier, of: loop}
    ```
    """

    code, name = "XC301", "bce-on-probabilities"


class HeadWithoutLoss(StageRule):
    """A head that no loss trains.

    Its answers stay what the random start made them. Two studies had such a head: one optimizer was built from the
    backbone's parameters alone, one gate was computed and never used after a refactoring.

    ## Bad
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    ```

    ## Good
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
    ```
    """

    code, name = "XC302", "head-without-loss"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        heads = stage.maps.get("heads", {})
        trained = {_head_of(use) for use in stage.maps.get("loss", {}).values()}
        started = {part for _, part, _ in taken(stage.shape)}
        for name, use in heads.items():
            if name not in trained and f"heads.{name}" not in started:
                yield self.finding(
                    f"no loss trains head `{name}`",
                    at.experiment.key(*use.path),
                    why="its answers would stay what the random start made them",
                    help=f"add a loss `{name}`, or leave the head out",
                )


def _head_of(use: Use) -> str:
    return str(getattr(use.slot, "of", None) or use.path[-1])


class UnknownHead(ToldRule):
    """A loss or metric names a head that is not there.

    ## Bad
    ```yaml
    metrics:
      accuracy: {use: accuracy, of: digits}
    ```

    ## Good
    ```yaml
    metrics:
      accuracy: {use: accuracy, of: digit}
    ```
    """

    code, name = "XC303", "unknown-head"


class UnknownColumn(ToldRule):
    """A loss, a metric or the model names a column that the data does not have.

    ## Bad
    ```yaml
    loss:
      digit: {use: cross_entropy, target: digits}
    ```

    ## Good
    ```yaml
    loss:
      digit: {use: cross_entropy, target: digit}
    ```
    """

    code, name = "XC304", "unknown-column"


class WeightZero(StageRule):
    """A loss has weight 0, so it trains nothing.

    It is computed, logged and looked at as if it were trained. Sweeping a weight over 0 is an ablation and no finding.

    ## Bad
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce, weight: 0.0}
    monitor: {digit: val/digit}
    ```

    ## Good
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce, weight: 0.5}
    monitor: {digit: val/digit}
    ```
    """

    code, name, severity = "XC305", "weight-zero", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for key, use in stage.maps.get("loss", {}).items():
            place = at.experiment.where(*use.path, "weight")
            if use.slot.weight == 0 and place.origin != "sweep":
                yield self.finding(
                    f"loss `{key}` has weight 0",
                    place.value,
                    why=f"head `{_head_of(use)}` gets no gradient from it"
                    if "heads" in stage.maps
                    else "nothing gets a gradient from it",
                    help="give it a weight, or leave the loss out; to compare, sweep the weight",
                )


class MetricRange(StageRule):
    """A threshold lies outside the range of what it is compared with, or at its edge.

    A value accuracy stood at exactly 0.5418 in every epoch: the threshold was 0 on a sigmoid's output, so every answer
    counted as yes, and 0.5418 was the share of yes. A threshold of 0.5 on logits is one of 0.62 on probabilities.

    ## Bad
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: loop, reads: prob, threshold: 0.0}
    ```

    ## Good
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: loop, reads: prob, threshold: 0.5}
    ```
    """

    code, name = "XC306", "metric-range"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        program = at.programs.get(stage.name)
        for edge in metrics(program) if program is not None else ():
            use = stage.maps["metrics"].get(edge.key)
            threshold = getattr(use.params, "threshold", None) if use is not None else None
            if use is None or threshold is None:
                continue
            if edge.reads is Prob and not 0 < threshold < 1:
                word = "yes" if threshold <= 0 else "no"
                yield self._told(
                    at,
                    use,
                    f"threshold {threshold:g} on probabilities: every answer counts as {word}",
                    f"`{edge.key}` would be the share of {word} in the data, whatever the net says",
                    "use a threshold between 0 and 1, such as 0.5",
                )
            elif edge.reads is BinaryLogits and 0 < threshold < 1:
                yield self._told(
                    at,
                    use,
                    f"threshold {threshold:g} on logits looks like one on probabilities",
                    "0.5 on logits is 0.62 on probabilities; even odds are 0",
                    "use `reads: prob`, or `threshold: 0.0` on logits",
                )

    def _told(self, at: Variant, use: Use, message: str, why: str, help: str) -> Finding:
        written = at.experiment.is_written((*use.path, "threshold"))
        span = (
            at.experiment.value(*use.path, "threshold") if written else at.experiment.key(*use.path)
        )
        return self.finding(message, span, why=why, help=help)


class OneHeadTwoLinks(StageRule):
    """One head is trained as logits by one loss and as probabilities by another.

    The two pull on the same numbers under different links: the squared error fades where the cross-entropy is
    strongest, and a change of weight changes more than the balance.

    ## Bad
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
      square: {use: mse, of: loop, target: loop}
    metrics:
      accuracy: {use: accuracy, of: loop}
    monitor: {best: val/loop}
    ```

    ## Good
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: loop}
      square: {use: brier, of: loop}
    monitor: {best: val/loop}
    ```
    """

    code, name, severity = "XC307", "one-head-two-links", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        program = at.programs.get(stage.name)
        first: dict[str, Edge] = {}
        for edge in terms(program) if program is not None else ():
            other = first.setdefault(edge.head, edge)
            if other.reads != edge.reads:
                yield self.finding(
                    f"loss `{edge.key}` reads head `{edge.head}` as {edge.reads.says}, "
                    f"loss `{other.key}` as {other.reads.says}",
                    at.experiment.key(*edge.op.path),
                    why="the two pull on the same numbers through different links",
                    help="train the head under one of them, and measure the other as a metric",
                    notes=(Note(at.experiment.key(*other.op.path), f"loss `{other.key}`"),),
                    spans=(at.experiment.key(*other.op.path),),
                )


class WrongTarget(ToldRule):
    """A loss or metric is compared with a column that holds something else.

    A field with "1 / number of moves seen" was once trained on as if it were a win rate: the target of every position
    seen once was 1.0.

    ## Bad
    ```yaml
    loss:
      digit: {use: cross_entropy, target: even}
    ```

    ## Good
    ```yaml
    loss:
      digit: {use: cross_entropy, target: digit}
    ```
    """

    code, name = "XC308", "wrong-target"


class ClassCount(StageRule):
    """A head gives another number of answers than its column has classes.

    Too few and the first batch with a higher class fails on the device; too many and part of the mass is lost on
    classes that can't occur. One project had 361, 362, 363 and 364 moves in different files.

    ## Bad
    ```yaml
    heads:
      digit: {use: linear_head, out: 9}
    ```

    ## Good
    ```yaml
    heads:
      digit: {use: linear_head, out: 10}
    ```
    """

    code, name, fixable = "XC309", "class-count", True

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        program = at.programs.get(stage.name)
        for edge in terms(program) if program is not None else ():
            head = stage.maps.get("heads", {}).get(edge.head)
            known = column(stage, edge.target)
            out = getattr(head.params, "out", None) if head is not None else None
            if head is None or known is None or out is None:
                continue
            wanted = _answers(stage, known)
            if wanted is not None and out != wanted:
                span = at.experiment.value(*head.path, "out")
                several = "one number" if wanted == 1 else f"{wanted} numbers"
                holds = f"has {wanted} classes" if known.classes else f"holds {several} a row"
                yield self.finding(
                    f"head `{edge.head}` gives {out} numbers, but column `{edge.target}` {holds}",
                    span,
                    why="the loss would fail at a batch, or spend mass on what can't occur",
                    help=f"set `out: {wanted}`",
                    fix=(Edit(span, str(wanted)),),
                )


def _answers(stage: Stage, known: Column) -> int | None:
    """How many numbers a row of a column asks for, where it is declared."""
    if known.port is ClassId or known.classes:
        return known.classes
    use = stage.uses["data"].component
    sure = known.port is Prob and bool(use.columns) and not use.own
    return math.prod(known.shape) if sure else None


class MetricShadowsLoss(StageRule):
    """A metric has the name of a loss, or of the total.

    Both would be logged under one key, and whoever reads the curve sees one of them.

    ## Bad
    ```yaml
    metrics:
      digit: {use: accuracy, of: digit}
    ```

    ## Good
    ```yaml
    metrics:
      digit_accuracy: {use: accuracy, of: digit}
    ```
    """

    code, name = "XC310", "metric-shadows-loss"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        losses = stage.maps.get("loss", {})
        for key, use in stage.maps.get("metrics", {}).items():
            if key in losses or key.startswith("total_"):
                other = (
                    (Note(at.experiment.key(*losses[key].path), "the loss"),)
                    if key in losses
                    else ()
                )
                yield self.finding(
                    f"metric `{key}` has the name of a {'loss' if key in losses else 'total'}",
                    at.experiment.key(*use.path),
                    why=f"both would be logged as `val/{key}`",
                    help=f"call it `{key}_{use.name.rpartition(':')[2].lower()}`",
                    notes=other,
                )


class StarvedClasses(StageRule):
    """Generalised cross-entropy over many classes gives a random net almost no gradient.

    Its gradient is that of cross-entropy times p^q. Over 1,496 moves with q = 0.7 a fresh net starts at 0.006 of it:
    1.4 % accuracy, and a loss that hardly moves. Start from trained weights, or use cross-entropy.

    ```csv moves.csv
    board,move
    0.5,1201
    ```

    ## Bad
    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: gce}
    metrics:
      accuracy: {use: accuracy, of: move}
    ```

    ## Good
    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: cross_entropy}
    metrics:
      accuracy: {use: accuracy, of: move}
    ```
    """

    code, name, severity = "XC311", "starved-classes", "warning"

    STARVED = 0.05

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        program = at.programs.get(stage.name)
        if program is None or any(taken(stage.shape)):
            return
        for edge in terms(program):
            use = stage.maps["loss"].get(edge.key)
            head = stage.maps.get("heads", {}).get(edge.head)
            out = getattr(head.params, "out", None) if head is not None else None
            if use is None or out is None or "starves_many_classes" not in use.component.traits:
                continue
            left = float(out) ** -use.param("q")
            if edge.reads is ClassLogits and left < self.STARVED:
                yield self.finding(
                    f"over {out} classes `{use.name}` starts with {left:.3f} of the gradient",
                    at.experiment.key(*use.path),
                    why=f"a fresh net gives each class 1/{out}, and the gradient carries that to the power of q",
                    help=f"use `cross_entropy` first, or `q` below {_largest_q(out, self.STARVED):.2f}",
                )


def _largest_q(classes: int, share: float) -> float:
    import math

    return -math.log(share) / math.log(classes)


class LossFlatAtTheEnds(StageRule):
    """A squared error on a sigmoid fades where the net is sure and wrong.

    Its gradient carries s(1-s): at s = 0.001 a wrong answer hardly moves. On labels with two peaks such a value head
    stayed at the labels' variance and was read as "the optimum of MSE". A sweep that compares the loss with another is
    no finding.

    ## Bad
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: mse}
    metrics:
      loop_brier: {use: brier, of: loop}
    ```

    ## Good
    ```yaml
    heads:
      loop: {use: linear_head, out: 1}
    loss:
      loop: {use: bce}
    metrics:
      loop_brier: {use: brier, of: loop}
    ```
    """

    code, name, severity = "XC312", "loss-flat-at-the-ends", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for edge, use in flat_at_the_ends(stage, at):
            held = known_column(stage, at, edge.target)
            if held is not None and held.shares is not None and held.shares.two_peaked:
                continue  # XC603 tells it with the figures
            of = (
                f"head `{edge.head}`"
                if edge.head in stage.maps.get("heads", {})
                else f"`{edge.key}`"
            )
            yield self.finding(
                f"`{use.name}` on the probability of {of} fades where it is sure and wrong",
                at.experiment.value(*use.path, "use"),
                why="the gradient carries s(1-s), which is 0.001 at s = 0.001",
                help=steeper(use),
            )


def flat_at_the_ends(stage: Stage, at: Variant) -> Iterator[tuple[Edge, Use]]:
    """Losses on a sigmoid whose gradient fades at both ends, where nothing steeper trains the head and no sweep compares."""
    program = at.programs.get(stage.name)
    every = terms(program) if program is not None else []
    steep = {edge.head for edge in every if edge.reads is BinaryLogits}
    for edge in every:
        use = stage.maps["loss"].get(edge.key)
        if use is None or "flat_at_the_ends" not in use.component.traits:
            continue
        if edge.reads is Prob and edge.head not in steep and not _compared(at, use.path):
            yield edge, use


def steeper(use: Use) -> str:
    """What to do about such a loss."""
    path = ".".join(map(str, use.path[1:]))
    return f"use `bce`, or compare the two: sweep `{path}.use: [bce, {use.name}]`"


def _compared(at: Variant, path: KeyPath) -> bool:
    """Whether the sweep sets this component: then it is what is studied."""
    return at.experiment.tree.at((*path, "use")).origin == "sweep"
