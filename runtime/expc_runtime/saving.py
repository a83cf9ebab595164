"""What a training keeps: the state to go on from, and the weights that were best."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expc_runtime.checkpoint import Checkpoint, Manifest, Store, load_weights
from expc_runtime.clocks import Epochs, Minutes, Updates
from expc_runtime.errors import BadValue, MissingInput
from expc_runtime.feeds import TrainingFeed
from expc_runtime.module import Module
from expc_runtime.randomness import random_state, restore

__all__ = ["Best", "Saves"]


@dataclass
class Saves:
    """When a training saves, and where; module and feed put their own state into each save."""

    folder: Path
    checkpoint: Checkpoint
    step: int = 0  # of the newest save
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "checkpoints", self.checkpoint.keep)

    def due(self, module: Module, *, epoch_ended: bool = False) -> bool:
        match self.checkpoint.every:
            case Minutes() as every:
                return time.monotonic() - self.at >= every.seconds
            case Updates(count):
                return module.updates - self.step >= count
            case Epochs(count):
                return epoch_ended and module.epoch % count == 0

    def save(self, module: Module, feed: TrainingFeed, rest: Mapping[str, Any]) -> None:
        """A generation of everything; ``rest`` is what the training itself remembers."""
        module.settle()
        state = {
            "model": module.state_dict(),
            "progress": module.progress(),
            "feed": feed.state_dict(),
            "random": random_state(),
            **rest,
        }
        self.store.save(state, step=module.updates)
        self.at, self.step = time.monotonic(), module.updates

    def load(self, module: Module, feed: TrainingFeed) -> dict[str, Any] | None:
        """Go on from the newest whole generation; its state, or None if there is none.

        Raises MissingInput if there are generations that cannot be read.
        """
        try:
            loaded = self.store.load()
            if loaded is None:
                return None
            state, manifest = loaded
            feed.load_state_dict(state["feed"])
        except MissingInput as error:
            raise MissingInput(
                f"{error}\n  to begin again, remove that folder: {self.folder}"
            ) from error
        load_weights(module, state["model"])
        module.resume(state["progress"])
        self.step = manifest.step
        restore(state["random"])
        return state


class Best:
    """The best value of each monitored figure, with the weights that reached it."""

    def __init__(self, store: Store, monitor: Mapping[str, str]) -> None:
        self._store = store
        self._monitor = dict(monitor)
        self.held: dict[str, dict[str, Any]] = {}  # by tag

    @property
    def first(self) -> str | None:
        """The monitor that the result is about."""
        return next(iter(self._monitor), None)

    def see(self, figures: Mapping[str, float], module: Module, feed: TrainingFeed) -> None:
        """Keep the weights wherever a figure is as good as its best; they have trained longer.

        Raises BadValue if a figure is not among these.
        """
        for tag, metric in self._monitor.items():
            if metric not in figures:
                raise BadValue(
                    f"monitor {tag} reads {metric}, but what is measured is "
                    f"{', '.join(sorted(figures)) or 'nothing'}"
                )
            value, held = figures[metric], self.held.get(tag)
            gain = value - held["value"] if held else 0.0
            if math.isnan(value) or (gain < 0 if feed.rises(metric) else gain > 0):
                continue
            self._keep(tag, metric, figures, module)

    def _keep(self, tag: str, metric: str, figures: Mapping[str, float], module: Module) -> None:
        held = self.held[tag] = {
            "metric": metric,
            "value": figures[metric],
            "step": module.updates,
            "epoch": module.epoch + 1,
            "figures": dict(figures),
        }
        state = {"model": module.state_dict(), "best": held}
        self._store.save(state, step=module.updates, tag=tag)

    def restore(self) -> None:
        """What is best is said beside its weights alone: a kill can part two files."""
        for tag in self._monitor:
            if (best := self._store.load(tag)) is not None:
                self.held[tag] = best[0]["best"]

    def load(self, tag: str, module: Module) -> dict[str, Any]:
        """Give ``module`` the best weights of ``tag``; what is known of them.

        Raises MissingInput if there are none.
        """
        loaded: tuple[dict[str, Any], Manifest] | None = self._store.load(tag)
        if loaded is None:
            raise MissingInput(f"no {tag} checkpoint in {self._store.folder}")
        load_weights(module, loaded[0]["model"])
        best: dict[str, Any] = loaded[0]["best"]
        return best

    def told(self) -> dict[str, dict[str, Any]]:
        """For result.json: metric, value, step and epoch by tag."""
        keys = ("metric", "value", "step", "epoch")
        return {tag: {key: held[key] for key in keys} for tag, held in self.held.items()}
