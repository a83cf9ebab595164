"""The figures of an epoch, beside what is reached without learning anything."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from expc_runtime import norms
from expc_runtime.feeds import TrainingFeed
from expc_runtime.gates import Gate, Mode
from expc_runtime.log import Log
from expc_runtime.module import Module
from expc_runtime.training.guards import Spread

__all__ = ["Figures", "NormStatistics", "Warn"]

NormStatistics = Literal["running", "reestimated"]

BESIDE = 16_384
"""Rows that are measured in train mode too, to be held against eval mode; a gate's are all."""

ALL = 2**62  # rows

GAP = 0.02
"""Of a metric from 0 to 1 between the two modes: more is said aloud."""


SETTLED = 2
"""Epochs after which an answer that is still that of a constant is said aloud."""

NEAR = 0.99
"""Of the best constant's loss: at that or above it nothing was learned."""

NARROW = 0.02
"""Deviation of an answer over the rows that is as good as none."""

SAME = 1e-6
"""Distance from the best constant's score that is none."""


class Warn(Protocol):
    """Say something to people, and put it into the result; of each ``once`` only the first."""

    def __call__(self, text: str, *, once: str = "") -> None: ...


class Figures:
    """What was measured last, and its floors. ``warn`` is told of what a person should know.

    A net with running statistics is measured in train mode as well, on the gate's split or the
    first: `other`. With ``norm_statistics`` "reestimated" these are averaged anew before each
    measurement (`norms.reestimate`), and stay so.
    """

    def __init__(
        self,
        module: Module,
        feed: TrainingFeed,
        log: Log,
        warn: Warn,
        *,
        gate: Gate | None = None,
        norm_statistics: NormStatistics = "running",
    ) -> None:
        self._module = module
        self._feed = feed
        self._log = log
        self._warn = warn
        self._gate = gate
        self._reestimated = norm_statistics == "reestimated"
        self._keeps = bool(norms.running(module))
        self.last: dict[str, float] = {}
        self.other: dict[str, float] = {}  # the same of train mode, where that is measured
        self.train: dict[str, float] = {}  # means of the newest flush
        self.floors = feed.floors()
        if self._keeps and module.ranks.size > 1:
            warn(
                f"batch norm reads the rows of its rank, one of {module.ranks.size}, not the batch; "
                "its running statistics are averaged over ranks before they are used"
            )
        if self._reestimated and not self._keeps:
            warn("norm_statistics: nothing that is trained here keeps running statistics")

    def measure(self) -> None:
        """Measure every split but test, log it, and look for an answer that never changes."""
        module, ranks = self._module, self._module.ranks
        if self._reestimated and self._keeps:
            norms.reestimate(module, ranks.shards(self._feed.sample("train", norms.AVERAGED)))
        ranks.average(norms.statistics(module))
        spread = Spread(module)
        figures: dict[str, float] = {}
        blind: list[str] = []
        try:
            for split in self._measured_splits():
                figures |= self._log_of(split, module.updates, module.epoch + 1)
                blind += [f"{split}/{name}" for name in module.one_answer]
        finally:
            spread.close()
        self.last = figures
        self.other = self._in_train_mode()
        if not norms.young(module):
            self.tell_gap()
        self._tell_collapse(spread)
        if module.epoch + 1 >= SETTLED:
            self._tell_blind(blind)

    def _tell_collapse(self, spread: Spread) -> None:
        """Say which answers hardly depend on the row, and that this is what the losses say too."""
        late = self._module.epoch + 1 >= SETTLED
        near = [key for key in self.last if late and self._is_no_better(key)]
        for head, share, width in spread.widths():
            name = f"output {head + 1} of {type(self._module).__name__}"
            if share < spread.SAME:
                self._warn(
                    f"{name} is the same for every row: it has collapsed to a constant",
                    once=f"collapsed {head}",
                )
            elif near and width < NARROW:
                told = ", ".join(
                    f"{key} is {self.last[key]:.4g}, and {self._feed.chance} gives {self.floors[key]:.4g}"
                    for key in near
                )
                self._warn(
                    f"{name} moves by {width:.2g} between rows: it has collapsed to a constant. {told}",
                    once=f"collapsed {head}",
                )

    def _is_no_better(self, key: str) -> bool:
        """Whether a loss is as good as that of one constant."""
        floor, name = self.floors.get(key), key.partition("/")[2]
        is_loss = name not in self._module.metrics() and not name.startswith("total_")
        return is_loss and floor is not None and floor > 0 and self.last[key] >= NEAR * floor

    def _tell_blind(self, keys: list[str]) -> None:
        """Say which metrics read one answer for every row, or score as if they did."""
        for key, value in self.last.items():
            if not self._is_share(key):
                continue
            floor = self.floors.get(key)
            if key in keys:
                beside = "" if floor is None else f"; a constant reaches {floor:.6g}"
                self._warn(
                    f"{key} {value:.6g} read one and the same answer in every row{beside}: look at "
                    "the head, and at the threshold of the metric",
                    once=f"blind {key}",
                )
            elif floor is not None and abs(value - floor) <= SAME:
                self._warn(
                    f"{key} {value:.6g} is what {self._feed.chance} reaches, to {SAME:g}",
                    once=f"blind {key}",
                )

    def seen_by(self, mode: Mode) -> dict[str, float]:
        """The newest figures, of the mode that a gate reads."""
        return self.last | self.other if mode == "train" else self.last

    def _measured_splits(self) -> list[str]:
        return [split for split in self._feed.splits() if split != "test"]

    def _in_train_mode(self) -> dict[str, float]:
        """Figures of one split in train mode, by the same names; nothing of it stays."""
        gated = self._gate is not None and self._gate.mode == "train"
        splits = self._measured_splits()
        if self._feed.mode == "train" or not splits or not (gated or self._keeps):
            return {}
        split = self._gate.split if self._gate and self._gate.split in splits else splits[0]
        module = self._module
        with norms.aside(module), module.eager():
            rows = self._feed.sample(split, ALL if gated else BESIDE)
            found = module.measured(rows, mode="train")
        figures = {f"{split}/{name}": value for name, value in found.items()}
        self._log.figures(
            split,
            figures,
            step=module.updates,
            epoch=module.epoch + 1,
            curves="train mode/",
            mode="train",
            **self._counts(),
        )
        return figures

    def tell_gap(self) -> None:
        """Say where the two modes are furthest apart, if they are."""
        gaps = {key: self.last[key] - v for key, v in self.other.items() if key in self.last}
        gaps = {key: gap for key, gap in gaps.items() if self._is_share(key) and abs(gap) > GAP}
        if norms.drops(self._module):  # which alone makes train mode the worse one
            gaps = {key: gap for key, gap in gaps.items() if (gap < 0) is self._feed.rises(key)}
        if not gaps or not self._keeps:
            return
        key = max(gaps, key=lambda key: abs(gaps[key]))
        why = (
            "batch norm reads each batch in train mode, averages over the rows in eval mode; larger "
            "batches are nearer to those"
            if self._reestimated
            else "the running statistics of batch norm are not those of the rows. `norm_statistics: "
            "reestimated` averages them anew before each measurement"
        )
        self._warn(
            f"{key} differs in train mode and in eval mode: {why}\n"
            f"  {self.other[key]:.4f} in train mode and {self.last[key]:.4f} in eval mode "
            f"at update {self._module.updates}",
            once="modes",
        )

    def _is_share(self, key: str) -> bool:
        """Whether a figure is a metric that says that it runs from 0 to 1."""
        metric = self._module.metrics().get(key.partition("/")[2])
        return metric is not None and metric.plot_lower_bound == 0 and metric.plot_upper_bound == 1

    def test(self, step: int, epoch: int) -> dict[str, float]:
        """Figures of the test split, if there is one, logged for the weights of that step."""
        return self._log_of("test", step, epoch) if "test" in self._feed.splits() else {}

    def _log_of(self, split: str, step: int, epoch: int) -> dict[str, float]:
        figures = self._feed.measured(split)
        mode = self._feed.mode
        self._log.figures(split, figures, step=step, epoch=epoch, mode=mode, **self._counts())
        return figures

    def _counts(self) -> dict[str, Any]:
        return {**self._feed.counts()}

    def flush(self) -> None:
        """Log the means of training since the last time, and the settings that moved them."""
        module = self._module
        found = module.records.means(module.ranks)
        means = {f"train/{name}": value for name, value in found.items()}
        module.records.clear()
        if means:
            for name in module.drive_names():
                told = module.drive(name).figures()
                means |= {f"{key}/{name}": value for key, value in told.items()}
            self.train = means
        if means := means | self._feed.told():
            step, epoch = module.updates, module.epoch
            self._log.figures("train", means, step=step, epoch=epoch, **self._counts())

    def log_floors(self) -> None:
        floors = {f"floor/{key}": value for key, value in self.floors.items()}
        if floors:
            self._log.figures("floor", floors, step=0, epoch=0)

    def line(self) -> str:
        """Figures of the epoch; the floor of each in brackets."""
        module = self._module
        told = [f"{self._feed.part} {module.epoch + 1}"]
        for key, value in self.last.items():
            floor = f" ({self.floors[key]:.4g})" if key in self.floors else ""
            told.append(f"{key.removeprefix('val/')} {value:.4g}{floor}")
        drives = module.drive_names()
        for name in drives:
            told.append(f"lr {name if len(drives) > 1 else ''} {module.drive(name).lr:.3g}")
        return "  ".join(" ".join(part.split()) for part in told)

    def warn_of_floors(self, figures: Mapping[str, float]) -> None:
        """Say which figures are no better than chance."""
        for key, value in figures.items():
            floor = self.floors.get(key)
            if floor is None or math.isnan(floor) or key.startswith("test/"):
                continue
            gain = value - floor if self._feed.rises(key) else floor - value
            if not gain > 1e-6 * max(1.0, abs(floor)):
                self._warn(
                    f"{key} {value:.6g} is no better than {self._feed.nothing}: "
                    f"{self._feed.chance} gives {floor:.6g}"
                )
