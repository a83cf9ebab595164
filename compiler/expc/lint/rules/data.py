"""XC602 on: what is true of the data, as `expc profile` found it."""

from __future__ import annotations

from collections.abc import Iterator

from expc.components import built_in
from expc.components.core import Use
from expc.experiment import Experiment, Stage
from expc.facts import Column, Damaged, StageFacts
from expc.findings import Finding, Note, Span, listed
from expc.identity import changed, identity
from expc.ir import ClassLogits, Program
from expc.lint.core import SpecRule, StageRule
from expc.lint.facts import (
    facts_file,
    facts_of,
    figures,
    gated_split,
    kept,
    kept_elsewhere,
    key_of,
    known,
    of_stage,
    use_of,
)
from expc.lint.reach import further, too_near
from expc.lint.readings import Edge, gate_of, metrics, terms
from expc.lint.rules.losses import flat_at_the_ends, steeper
from expc.sweep import Variant


class GateBelowFloor(StageRule):
    """A constant answer passes the gate, or nearly: its floor on the very rows of the gate says so.

    94.5 to 95.3 % of one stage's bits were 0, so "always no" scored 0.945 in element accuracy and the gate stood at
    0.95: the net that came through had a sample F1 of 0.47. `expc profile` measures the best constant answers on the
    split that the gate is about; a threshold must lie well beyond them, or on a metric that a constant does badly on.

    ```json facts
    {"columns": {"zero": {"port": "prob", "shares": {"mean": 0.099, "below": 0.901, "above": 0.099}}},
     "floors": [{"figure": "accuracy", "use": "accuracy", "params": {}, "reads": "Prob", "column": "zero",
                 "values": {"val": 0.90251, "test": 0.89972}},
                {"figure": "zero", "use": "bce", "params": {}, "reads": "BinaryLogits", "column": "zero",
                 "values": {"val": 0.32034, "test": 0.32691}}]}
    ```

    ## Bad
    ```yaml
    heads:
      zero: {use: linear_head, out: 1}
    loss:
      zero: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: zero}
    until: {metric: accuracy, at_least: 0.91, budget: {epochs: 12}}
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

    code, name = "XC602", "gate-below-floor"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        until, program, facts = gate_of(stage), at.programs.get(stage.name), known(stage, at)
        if until is None or not until.metric or until.bound is None:
            return
        if program is None or facts is None:
            return
        key, split = until.metric.rpartition("/")[2], gated_split(until)
        for edge in (*metrics(program), *terms(program)):
            use = use_of(stage, edge) if edge.key == key else None
            floor = facts.floor(key_of(use, edge), split) if use is not None else None
            says = too_near(*until.bound, floor) if floor is not None else ""
            if floor is not None and says:
                word, bound = until.bound
                column = facts.columns.get(edge.target)
                yield self.finding(
                    f"a constant answer {says}: it reaches {floor:.4g} on `{split}/{edge.key}`, "
                    f"and `{word}` is {bound:g}",
                    at.experiment.value(*stage.path, "until", word),
                    why=_uneven(edge.target, column, finds_yes="finds_yes" in _traits(use)),
                    help=further(word, floor, instead=_harder(stage, program, facts, edge, split)),
                    notes=(
                        Note(at.experiment.key(*edge.op.path), f"`{edge.key}` is measured here"),
                    ),
                )


def _traits(use: Use | None) -> frozenset[str]:
    return use.component.traits if use is not None else frozenset()


def _uneven(name: str, column: Column | None, *, finds_yes: bool) -> str:
    if column is not None and column.labels is not None and column.shares is not None:
        if finds_yes:  # `no` everywhere scores 0 there
            return f"it says yes to the most frequent labels of column `{name}`, and no to the rest"
        no = 100 * (1 - column.shares.mean)
        return f"{no:.2f} % of the labels in column `{name}` are no, so `no` is right nearly always"
    if column is not None and column.classes is not None:
        share = 100 * column.classes.share
        return f"{share:.3g} % of column `{name}` are one class, number {column.classes.common}"
    if column is not None and column.shares is not None:
        mean, variance = column.shares.mean, column.shares.variance
        return f"column `{name}` has mean {mean:.4g} and variance {variance:.4g}"
    return "the gate would open on a net that learned nothing"


def _harder(stage: Stage, program: Program, facts: StageFacts, edge: Edge, split: str) -> str:
    """A metric on which a constant answer does worse: one that the stage has, with its floor, else one to add."""
    if edge.target not in facts.columns or edge.reads is ClassLogits:
        return ""
    by_row = facts.columns[edge.target].labels is not None
    wanted = next(
        name
        for name, metric in built_in("metric").items()
        if "finds_yes" in metric.traits and ("by_row" in metric.traits) == by_row
    )
    for other in metrics(program):
        use = use_of(stage, other)
        if use is None or use.name != wanted or other.head != edge.head:
            continue
        if other.key == edge.key:
            return ""  # it is that already
        floor = facts.floor(key_of(use, other), split)
        return other.key if floor is None else f"{other.key}`, whose floor is `{floor:.3f}"
    return wanted


class SquaredErrorOnTwoPeaks(StageRule):
    """A squared error on a sigmoid, and labels that are yes or no and little between.

    Its gradient carries s(1-s) and fades where the net is sure and wrong, which labels with two peaks ask it to be. A
    value head stayed at the variance of such labels, 0.21 to 0.25, for weeks; that was the floor of a constant answer,
    and was read as the optimum of the loss. Labels are called two-peaked if Sarle's coefficient (skew^2 + 1) / kurtosis is
    above 5/9, its value for a uniform distribution, and there is a valley between two bins of ten. A sweep that compares
    the loss with another is no finding.

    ```json facts
    {"columns": {"loop": {"port": "prob", "shares": {"mean": 0.397, "below": 0.603, "above": 0.397, "bimodality": 1.0, "two_peaked": true}}},
     "floors": [{"figure": "loop", "use": "mse", "params": {}, "reads": "Prob", "column": "loop", "values": {"val": 0.24606}},
                {"figure": "loop_brier", "use": "brier", "params": {}, "reads": "Prob", "column": "loop", "values": {"val": 0.24606}}]}
    ```

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

    code, name, severity = "XC603", "squared-error-on-two-peaks", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        facts = known(stage, at)
        for edge, use in flat_at_the_ends(stage, at) if facts is not None else ():
            column = facts.columns.get(edge.target) if facts is not None else None
            if facts is None or column is None or column.shares is None:
                continue
            if not column.shares.two_peaked:
                continue
            ends = 100 * (column.shares.below + column.shares.above)
            key = key_of(use, edge)
            floor = facts.floor(key, stage.kind.measured) or facts.floor(key, "train")
            reached = f"a constant answer reaches {floor:.4g}" if floor is not None else ""
            yield self.finding(
                f"`{use.name}` on two-peaked labels: {ends:.3g} % of column `{edge.target}` lie below .1 or above .9",
                at.experiment.value(*use.path, "use"),
                why="; ".join(
                    filter(None, (reached, "the gradient fades where the net is sure and wrong"))
                ),
                help=steeper(use),
            )


class RowsWithoutTarget(StageRule):
    """Rows of class probabilities that are all zero, under a loss over classes.

    Such a row asks for nothing: its cross-entropy is 0 whatever the net says. 44 % of the rows of one data set were
    silent in this way, so the policy loss looked smaller by half and the value of a batch depended on how many it held.

    ```csv moves.csv
    board,move
    0.5,0
    ```

    ```json facts
    {"data": {"use": "arrays", "params": {"columns": {"board": "features", "move": "class_probs"}, "file": "moves.csv"}, "settings": {"split": {"val": 0.2}}},
     "inputs": ["board"],
     "columns": {"board": {"port": "features"}, "move": {"port": "class_probs", "sums": {"lowest": 0.0, "zero": 790}}},
     "floors": [{"figure": "move", "use": "kl_div", "params": {}, "reads": "ClassLogits", "column": "move", "values": {"val": 5.2}}]}
    ```

    ## Bad
    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class_probs}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: kl_div}
    metrics: {}
    ```

    ## Good
    ```json facts
    {"columns": {"move": {"port": "class_probs", "sums": {"lowest": 1.0, "zero": 0}}}}
    ```

    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class_probs}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: kl_div}
    metrics: {}
    ```
    """

    code, name, severity = "XC604", "rows-without-target", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for edge, column, facts in _targets(stage, at):
            if column.sums is not None and column.sums.zero and edge.reads is ClassLogits:
                share = 100 * column.sums.zero / facts.rows
                yield self.finding(
                    f"{column.sums.zero:,} rows of column `{edge.target}` are all zero ({share:.3g} %)",
                    at.experiment.key(*edge.op.path),
                    why=f"loss `{edge.key}` asks nothing of the net there, whatever it answers",
                    help="leave those rows out of the data",
                )


class RowsOffOne(StageRule):
    """Rows of class probabilities that do not sum to 1.

    A row of sum 2 counts twice in the loss, and the loss of a perfect answer is no longer 0. Rows of counts, or of
    win rates, must be divided by their sum before they are trained on.

    ```csv moves.csv
    board,move
    0.5,0
    ```

    ```json facts
    {"data": {"use": "arrays", "params": {"columns": {"board": "features", "move": "class_probs"}, "file": "moves.csv"}, "settings": {"split": {"val": 0.2}}},
     "inputs": ["board"],
     "columns": {"board": {"port": "features"}, "move": {"port": "class_probs", "sums": {"lowest": 0.4, "highest": 12.5, "off": 1640}}},
     "floors": [{"figure": "move", "use": "kl_div", "params": {}, "reads": "ClassLogits", "column": "move", "values": {"val": 5.2}}]}
    ```

    ## Bad
    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class_probs}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: kl_div}
    metrics: {}
    ```

    ## Good
    ```json facts
    {"columns": {"move": {"port": "class_probs", "sums": {"lowest": 1.0, "highest": 1.0, "off": 0}}}}
    ```

    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, move: class_probs}, batch: 64, split: {val: 0.2}}
    heads:
      move: {use: linear_head, out: 1496}
    loss:
      move: {use: kl_div}
    metrics: {}
    ```
    """

    code, name, severity = "XC605", "rows-off-one", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        for edge, column, _ in _targets(stage, at):
            if column.sums is not None and column.sums.off:
                low, high = column.sums.lowest, column.sums.highest
                yield self.finding(
                    f"{column.sums.off:,} rows of column `{edge.target}` do not sum to 1",
                    at.experiment.key(*edge.op.path),
                    why=f"they sum to {low:.4g} up to {high:.4g}, and count in `{edge.key}` as much",
                    help="divide each row by its sum",
                )


class ConstantColumn(StageRule):
    """A column that the net reads, or is trained on, is the same in every row.

    Nothing can be learned from it. A mask of legal moves was declared and shipped as all ones for months: 9 MB for each
    batch of 1,024, and no move was masked.

    ```csv moves.csv
    board,good
    0.5,1
    ```

    ```json facts
    {"data": {"use": "arrays", "params": {"columns": {"board": "features", "good": "prob"}, "file": "moves.csv"}, "settings": {"split": {"val": 0.2}}},
     "inputs": ["board"],
     "columns": {"board": {"port": "features"}, "good": {"port": "prob", "constant": 1, "lowest": 1.0, "highest": 1.0}},
     "floors": [{"figure": "good", "use": "bce", "params": {}, "reads": "BinaryLogits", "column": "good", "values": {"val": 0.0}}]}
    ```

    ## Bad
    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, good: prob}, batch: 64, split: {val: 0.2}}
    heads:
      good: {use: linear_head, out: 1}
    loss:
      good: {use: bce}
    metrics: {}
    ```

    ## Good
    ```json facts
    {"columns": {"good": {"port": "prob", "constant": 0, "lowest": 0.0}}}
    ```

    ```yaml
    data: {use: arrays, file: moves.csv, columns: {board: features, good: prob}, batch: 64, split: {val: 0.2}}
    heads:
      good: {use: linear_head, out: 1}
    loss:
      good: {use: bce}
    metrics: {}
    ```
    """

    code, name, severity = "XC606", "constant-column", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        facts = known(stage, at)
        for name, column in facts.columns.items() if facts is not None else ():
            if facts is not None and facts.rows > 1 and column.constant == column.elements:
                only = f": {column.lowest:g}" if column.lowest == column.highest is not None else ""
                read = name in facts.inputs
                yield self.finding(
                    f"column `{name}` is the same in all {facts.rows:,} rows{only}",
                    _place(stage, at.experiment, name),
                    why="the net reads it and learns nothing from it"
                    if read
                    else "a constant answer is already right",
                    help="look at how it was made, or leave it out",
                )


class HeldOutRowsInTrain(StageRule):
    """Many held-out rows have the inputs of a row that is trained on.

    They measure what was learned by heart: the figure is too good, and early stopping never stops. A few per cent are
    natural where games open alike; more come from rows that were written twice, or from a split that parts what
    belongs together.

    ```json facts
    {"distinct": 1500, "splits": {"val": {"rows": 359, "repeated": 120}}}
    ```

    ## Bad
    ```yaml
    about: Are digits that were written twice counted twice?
    ```

    ## Good
    ```json facts
    {"distinct": 1797, "splits": {"val": {"rows": 359, "repeated": 3}}}
    ```

    ```yaml
    about: Are digits that were written twice counted twice?
    ```
    """

    code, name, severity = "XC607", "held-out-rows-in-train", "warning"

    SHARE = 0.05

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        facts = known(stage, at)
        for name, split in facts.splits.items() if facts is not None else ():
            if name != "train" and split.repeated > self.SHARE * split.rows:
                share = 100 * split.repeated / split.rows
                yield self.finding(
                    f"{share:.3g} % of the rows of `{name}` have inputs that train has too",
                    at.experiment.key(*stage.path, "data"),
                    why=f"{split.repeated:,} of {split.rows:,} rows measure what was learned by heart",
                    help="leave repeated rows out of the data, or split by what they share: `split: {by: ...}`",
                )


class ImpossibleNumbers(StageRule):
    """A column holds numbers that can't be what it means.

    Probabilities outside 0 to 1, NaN and infinities, class ids below 0 or beyond the answers of the head: the first such
    batch fails on the device, or the loss is NaN from there on.

    ```json facts
    {"columns": {"digit": {"port": "class", "dtype": "int64", "highest": 12, "classes": {"seen": 13, "highest": 12}}}}
    ```

    ## Bad
    ```yaml
    about: Do labels go beyond the classes?
    ```

    ## Good
    ```json facts
    {"columns": {"digit": {"port": "class", "dtype": "int64", "highest": 9, "classes": {"seen": 10, "highest": 9}}}}
    ```

    ```yaml
    about: Do labels go beyond the classes?
    ```
    """

    code, name = "XC608", "impossible-numbers"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        facts = known(stage, at)
        for name, column in facts.columns.items() if facts is not None else ():
            if column.unfit:
                holds = f"from {column.lowest:g} to {column.highest:g}" if column.highest else ""
                yield self.finding(
                    f"column `{name}` holds {column.unfit:,} numbers that can't be",
                    _place(stage, at.experiment, name),
                    why=f"a {column.port} column holds finite numbers"
                    + (f" between 0 and 1; these go {holds}" if "prob" in column.port else ""),
                    help="mend the data",
                )
        for edge, column, _ in _targets(stage, at):
            head = stage.maps.get("heads", {}).get(edge.head)
            out = getattr(head.params, "out", None) if head is not None else None
            if column.classes is None or column.port != "class" or out is None:
                continue
            low = column.lowest or 0.0
            if column.classes.highest >= out or low < 0:
                yield self.finding(
                    f"class ids of column `{edge.target}` run from {low:g} to {column.classes.highest}, "
                    f"and head `{edge.head}` gives {out} numbers",
                    at.experiment.key(*edge.op.path),
                    why="the first batch that holds such an id would fail",
                    help=f"number the classes from 0, or set `out: {column.classes.highest + 1}`",
                )


class FactsOutOfDate(StageRule):
    """The facts beside the spec are about other data than it reads now.

    Rules that rest on them are silent until the data is profiled again. A file is compared by its SHA-256, one above
    64 MiB by its size, your own source by its code; where a file is not on this machine, its facts are taken as they are.

    ```json facts
    {}
    ```

    ## Bad
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.3, test: 0.2}}
    ```

    ## Good
    ```yaml
    data: {use: digits, batch: 32, split: {val: 0.2, test: 0.2}}
    ```
    """

    code, name, severity = "XC609", "facts-out-of-date", "warning"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        facts = facts_of(at.experiment)
        if identity(stage) is None or facts is None or isinstance(facts, Damaged):
            return
        held = kept(stage, at.experiment)
        if held is None:
            said = "" if kept_elsewhere(stage, at.experiment) else self._other(stage, at)
        elif what := changed(held, stage, at.experiment.root):
            said = f"{what} has changed since it was profiled"
        else:
            said = self._lacking(held, stage, at)
        if said:
            yield self.finding(
                said,
                at.experiment.key(*stage.path, "data"),
                why=f"nothing is known of the data of stage `{stage.name}` as it is now",
                help=f"run `expc profile {at.experiment.file}`",
            )

    def _other(self, stage: Stage, at: Variant) -> str:
        if not of_stage(stage, at.experiment):
            return f"the facts say nothing of stage `{stage.name}`"
        return f"the data of stage `{stage.name}` is another than the one that was profiled"

    def _lacking(self, held: StageFacts, stage: Stage, at: Variant) -> str:
        program = at.programs.get(stage.name)
        every = [edge for edge, _ in figures(stage, program)] if program is not None else []
        there = {floor.figure for floor in held.floors}
        lacking = [edge.key for edge in every if edge.key not in there]
        columns = [edge.target for edge in every if edge.target not in held.columns]
        names = list(dict.fromkeys((*columns, *lacking)))
        return f"the facts say nothing of {listed(names)}" if names else ""


class DamagedFacts(SpecRule):
    """The file of facts beside the spec can't be read.

    It was cut off, edited by hand, left with marks of a merge, or made by another version of expc.

    ```json specs/example.facts.json
    {"facts": 1, "stages": [
    ```

    ## Bad
    ```yaml
    about: What is known of the data?
    ```

    ## Good
    ```json facts
    {}
    ```

    ```yaml
    about: What is known of the data?
    ```
    """

    code, name, severity = "XC610", "damaged-facts", "warning"

    def check(self, experiment: Experiment) -> Iterator[Finding]:
        facts = facts_of(experiment)
        if isinstance(facts, Damaged):
            yield self.finding(
                f"`{facts_file(experiment).name}` is damaged: {facts}",
                experiment.key("name"),
                why="no rule about the data can be held against it",
                help=f"run `expc profile {experiment.file}`, which makes it anew",
            )


# ------------------------------------------------------------------------------------------------- readings


def _targets(stage: Stage, at: Variant) -> Iterator[tuple[Edge, Column, StageFacts]]:
    """Loss terms with what is known of the column that each is compared with."""
    program, facts = at.programs.get(stage.name), known(stage, at)
    if program is None or facts is None:
        return
    for edge in terms(program):
        column = facts.columns.get(edge.target)
        if column is not None:
            yield edge, column, facts


def _place(stage: Stage, experiment: Experiment, column: str) -> Span:
    """Where a column is declared, else the data it is of."""
    path = (*stage.path, "data", "columns", column)
    return experiment.key(*(path if experiment.is_written(path) else (*stage.path, "data")))
