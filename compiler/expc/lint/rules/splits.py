"""XC6: rows that a split tears apart, or that a stream can't save the memory of."""

from __future__ import annotations

from collections.abc import Iterator

from expc.components.data import groups_of
from expc.experiment import Stage
from expc.findings import Finding, listed
from expc.lint.core import StageRule
from expc.sweep import Variant


class GroupsOnBothSides(StageRule):
    """Rows of one group are trained on and held out.

    All positions of a game have one result. A row split puts most games on both sides, and the net need only
    recognise a game to know who won it: the held-out value error fell while the net learned games by heart, early stopping
    never stopped, and the calibration error was .11 where a split by game gave .03. `by` holds out groups whole; shares
    are then of the groups.

    ```csv data/digits.csv
    ink,digit,writer
    0.5,1,7
    ```

    ## Bad
    ```yaml
    model:
      backbone: {use: mlp, in_features: 1}
    data: {use: arrays, file: data/digits.csv, columns: {ink: features, digit: class, writer: group}, batch: 64, split: {val: 0.2}}
    ```

    ## Good
    ```yaml
    model:
      backbone: {use: mlp, in_features: 1}
    data: {use: arrays, file: data/digits.csv, columns: {ink: features, digit: class, writer: group}, batch: 64, split: {by: writer, val: 0.2}}
    ```
    """

    code, name = "XC601", "groups-on-both-sides"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use = stage.uses.get("data")
        groups = groups_of(use) if use is not None else ()
        if use is None or not groups or use.slot.split.by is not None:
            return
        held = [share for share in ("val", "test") if getattr(use.slot.split, share)]
        if not held:
            return
        where = (*use.path, "split")
        first = groups[0]
        yield self.finding(
            f"rows of one `{first}` are trained on and held out",
            at.experiment.key(*where, held[0]),
            why=f"they share what is to be learned: {listed(held)} would measure what was learned by heart",
            help=f"add `by: {first}` to `split`",
        )


class NothingToStream(StageRule):
    """A stream of rows that are all read at once.

    `stream` holds a window of rows and reads the next while the net trains. This source gives whole columns, and
    no window would make that less: the stage would stop at its start.

    ## Bad
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.2}, stream: {window: 1000}}
    ```

    ## Good
    ```yaml
    data: {use: digits, batch: 64, split: {val: 0.2}}
    ```
    """

    code, name = "XC611", "nothing-to-stream"

    def check(self, stage: Stage, at: Variant) -> Iterator[Finding]:
        use = stage.uses.get("data")
        if use is None or use.slot.stream is None or use.component.own:
            return
        if "blocks" not in use.component.traits:
            yield self.finding(
                f"`{use.name}` is read whole: there is nothing to stream",
                at.experiment.key(*use.path, "stream"),
                why="a window would be held beside all the rows",
                help="leave out `stream`; `feather` reads files in blocks",
            )
