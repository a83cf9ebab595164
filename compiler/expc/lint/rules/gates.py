"""XC2: what a gate measures, and on which statistics."""

from __future__ import annotations

from collections.abc import Iterator

from expc.components.core import Use
from expc.experiment import Stage
from expc.findings import Finding, Span, listed
from expc.lint.core import StageRule
from expc.lint.readings import gate_of
from expc.sweep import Variant


def keepers(stage: Stage) -> list[str]:
    """Parts that are trained and keep running statistics, as far as declarations say."""
    frozen = getattr(stage.shape, "frozen", {})
    return [
        part
        for part, use in stage.maps.get("model", {}).items()
        if part not in frozen and _keeps(use)
    ]


def _keeps(use: Use) -> bool:
    kept = "running_statistics" in use.component.traits
    return kept and bool(getattr(use.params, "norm", True))


class GateInTrainMode(StageRule):
    """A threshold is measured in train mode.

    Dropout is on, so the figure is of a net that nobody will use: it is handed on, saved and run in eval mode.

    ## Bad
    ```yaml
    model:
      backbone: {use: conv_net, channels: [16, 32], norm: false, dropout: 0.1}
    until: {metric: accuracy, mode: train, at_least: 0.97, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: conv_net, channels: [16, 32], norm: false, dropout: 0.1}
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```
    """

    code, name, severity = "XC215", "gate-in-train-mode", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = gate_of(stage)
        if until is not None and until.metric and until.mode == "train" and not keepers(stage):
            yield self.finding(
                f"the gate measures `{until.metric}` in train mode",
                at.experiment.value(*stage.path, "until", "mode"),
                why="what passes is handed on and used in eval mode, which may be worse or better",
                help="leave `mode` out; allow it where a report did so and is to be repeated",
            )


class GateHidesStatistics(StageRule):
    """A threshold is measured in train mode on a net with batch norm.

    In train mode batch norm reads the batch; in eval mode, its running statistics. One such gate opened at 0.9903 on a
    net that was 0.8632 right in eval mode, below a constant answer's 0.9021, and the backbone was handed on like that.
    A run measures both modes and says a gap aloud; `norm_statistics: reestimated` closes most of it.

    ## Bad
    ```yaml
    until: {metric: accuracy, mode: train, at_least: 0.97, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    norm_statistics: reestimated
    ```
    """

    code, name, severity = "XC216", "gate-hides-statistics", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until, parts = gate_of(stage), keepers(stage)
        if until is not None and until.metric and until.mode == "train" and parts:
            yield self.finding(
                f"the gate measures `{until.metric}` in train mode, and {_told(parts)} running statistics",
                at.experiment.value(*stage.path, "until", "mode"),
                why="they are not read in train mode: the gate opens on a net that may fail with them",
                help="leave `mode` out, and set `norm_statistics: reestimated`",
            )


def _told(parts: list[str]) -> str:
    return f"{listed(parts)} {'keep' if len(parts) > 1 else 'keeps'}"


class GateOutOfRange(StageRule):
    """A threshold lies where the metric never is, or always.

    Accuracies, F1 scores and Brier scores are between 0 and 1. A gate at 97 is never met, and the stage fails when its
    budget is spent; one at 0 opens after the first epoch, on anything.

    ## Bad
    ```yaml
    until: {metric: accuracy, at_least: 97.0, budget: {epochs: 12}}
    ```

    ## Good
    ```yaml
    until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}}
    ```
    """

    code, name = "XC225", "gate-out-of-range"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until = gate_of(stage)
        if until is None or not until.metric or until.bound is None:
            return
        use = stage.maps.get("metrics", {}).get(until.metric.rpartition("/")[2])
        if use is None or "share" not in use.component.traits:
            return
        word, bound = until.bound
        ends = [_meets(word, bound, end) for end in (0.0, 1.0)]
        if all(ends) or not any(ends):
            span = at.experiment.value(*stage.path, "until", word)
            yield (
                self._always(until.metric, span)
                if all(ends)
                else self._never(until.metric, bound, span)
            )

    def _never(self, metric: str, bound: float, span: Span) -> Finding:
        meant = f"did you mean {bound / 100:g}?" if 1 < bound <= 100 else "use a bound within"
        return self.finding(
            f"no `{metric}` gets there: it lies between 0 and 1",
            span,
            why="the stage would spend its whole budget, and then fail",
            help=meant,
        )

    def _always(self, metric: str, span: Span) -> Finding:
        return self.finding(
            f"every `{metric}` meets this: it lies between 0 and 1",
            span,
            why="the gate would open after the first epoch, whatever was learned",
            help="use a bound within, or leave the gate out",
        )


def _meets(word: str, bound: float, value: float) -> bool:
    match word:
        case "at_least":
            return value >= bound
        case "above":
            return value > bound
        case "at_most":
            return value <= bound
        case _:
            return value < bound


class StatisticsNobodyKeeps(StageRule):
    """`norm_statistics: reestimated`, and no part that is trained keeps any.

    Layer norm has none, and those of a frozen part stay as they came. The pass over the rows would be for nothing.

    ## Bad
    ```yaml
    model:
      backbone: {use: conv_net, channels: [16, 32], norm: false}
    norm_statistics: reestimated
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: conv_net, channels: [16, 32]}
    norm_statistics: reestimated
    ```
    """

    code, name = "XC217", "statistics-nobody-keeps"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        if getattr(stage.shape, "norm_statistics", "running") != "reestimated":
            return
        nets = [use for slot in ("model", "heads") for use in stage.maps.get(slot, {}).values()]
        if not keepers(stage) and not any(use.component.own for use in nets):
            yield self.finding(
                "nothing that this stage trains keeps running statistics",
                at.experiment.value(*stage.path, "norm_statistics"),
                why="there is nothing to average",
                help="leave it out",
            )
