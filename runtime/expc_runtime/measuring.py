"""The figures of an epoch, beside what is reached without learning anything."""

import math
from collections.abc import Callable, Mapping

from expc_runtime.feeds import TrainingFeed
from expc_runtime.guards import Spread
from expc_runtime.log import Log
from expc_runtime.module import Module

__all__ = ["Figures"]


class Figures:
    """What was measured last, and its floors. ``warn`` is told of what a person should know."""

    def __init__(
        self, module: Module, feed: TrainingFeed, log: Log, warn: Callable[[str], None]
    ) -> None:
        self._module = module
        self._feed = feed
        self._log = log
        self._warn = warn
        self.last: dict[str, float] = {}
        self.train: dict[str, float] = {}  # means of the newest flush
        self.floors = feed.floors()

    def measure(self) -> None:
        """Measure every split but test, log it, and look for an answer that never changes."""
        module, spread = self._module, Spread(self._module)
        figures: dict[str, float] = {}
        try:
            for split in self._feed.splits():
                if split != "test":
                    figures |= self._log_of(split, module.updates, module.epoch + 1)
        finally:
            spread.close()
        self.last = figures
        for head in spread.constant():
            self._warn(
                f"output {head + 1} of {type(module).__name__} is the same for every row: "
                "it has collapsed to a constant"
            )

    def test(self, step: int, epoch: int) -> dict[str, float]:
        """Figures of the test split, if there is one, logged for the weights of that step."""
        return self._log_of("test", step, epoch) if "test" in self._feed.splits() else {}

    def _log_of(self, split: str, step: int, epoch: int) -> dict[str, float]:
        figures = self._feed.measured(split)
        counts = self._feed.counts()
        mode = self._feed.mode
        self._log.figures(split, figures, step=step, epoch=epoch, mode=mode, **counts)
        return figures

    def flush(self) -> None:
        """Log the means of training since the last time, and the settings that moved them."""
        module = self._module
        means = {f"train/{name}": value for name, value in module.records.means().items()}
        module.records.clear()
        if means:
            for name in module.drive_names():
                told = module.drive(name).figures()
                means |= {f"{key}/{name}": value for key, value in told.items()}
            self.train = means
        if means := means | self._feed.told():
            counts = self._feed.counts()
            self._log.figures("train", means, step=module.updates, epoch=module.epoch, **counts)

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
