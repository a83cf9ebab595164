"""What a training keeps: the state to go on from, and the weights that were best."""

import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expc_runtime.checkpoint import Checkpoint, Manifest, Store, load_weights
from expc_runtime.clocks import Epochs, Minutes, Updates
from expc_runtime.errors import BadValue, DiskFull, MissingInput
from expc_runtime.feeds import TrainingFeed
from expc_runtime.module import Module
from expc_runtime.norms import statistics
from expc_runtime.optim import Drive
from expc_runtime.randomness import random_state, restore
from expc_runtime.ranks import ALONE, Ranks
from expc_runtime.records import Records

__all__ = ["Best", "Saves"]


@dataclass
class Saves:
    """When a training saves, and where; module and feed put their own state into each save.

    Of several ranks the first writes, once it has what the others have for themselves.
    """

    folder: Path
    checkpoint: Checkpoint
    ranks: Ranks = ALONE
    step: int = 0  # of the newest save
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "checkpoints", self.checkpoint.keep)

    def require_room(self, module: Module, tags: int) -> None:
        """Raises DiskFull where what the stage will keep has no room, before it trains for hours.

        That is a file in the making beside the generations of what it goes on from, optimizers
        filled, and of the weights of ``tags`` monitors.
        """
        weights = _bytes(module.state_dict().values())
        moments = sum(_moments(module.drive(name)) for name in module.drive_names())
        whole, keep = weights + moments, self.checkpoint.keep
        need = whole * (keep + 1) + weights * keep * tags
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if self.ranks.first and free < need:
            raise DiskFull(
                f"{self.folder}: {need / 1e6:,.0f} MB are needed for {keep} checkpoints of "
                f"{whole / 1e6:,.0f} MB, one in the making"
                f"{f' and the best of {tags}' if tags else ''}; {free / 1e6:,.0f} MB are free"
            )

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
        progress = module.progress()
        own = self.ranks.to_first(_own(module, progress)) if self.ranks.size > 1 else []
        if self.ranks.first:
            state = {
                "model": module.state_dict(),
                "progress": progress,
                "feed": feed.state_dict(),
                "random": random_state(),
                **({"ranks": own} if own else {}),
                **rest,
            }
            self.store.save(state, step=module.updates)
        self.ranks.wait()  # until it can be read; and none ends while it is written
        self.at, self.step = time.monotonic(), module.updates

    def load(self, module: Module, feed: TrainingFeed) -> dict[str, Any] | None:
        """Go on from the newest whole generation; its state, or None if there is none.

        As many ranks as saved it go on as if they had not been stopped. Others begin with the sums of
        what those had gathered, and draw other numbers.

        Raises MissingInput if there are generations that cannot be read.
        """
        try:
            loaded = self._loaded()
            if loaded is None:
                return None
            state, manifest = loaded
            feed.load_state_dict(state["feed"])
        except MissingInput as error:
            raise MissingInput(
                f"{error}\n  to begin again, remove that folder: {self.folder}"
            ) from error
        load_weights(module, state["model"])
        held = state.get("ranks") or [_only(state, module)]
        own = held[self.ranks.rank] if len(held) == self.ranks.size else _share(held, self.ranks)
        progress = state["progress"]
        progress["records"] = own["records"]
        for name, drive in progress["drives"].items():
            drive["grads"] = own["grads"][name]
        module.resume(progress)
        for value, was in zip(statistics(module), own["statistics"], strict=True):
            value.copy_(was)
        self.step = manifest.step
        if own["random"]:
            restore(own["random"])
        return state

    def _loaded(self) -> tuple[dict[str, Any], Manifest] | None:
        """The first rank verifies; the others then read that very file."""
        loaded = self.store.load() if self.ranks.first else None
        file = self.ranks.of_first(loaded[1].file if loaded else None)
        if file is not None and not self.ranks.first:
            loaded = self.store.load()
            if loaded is None or loaded[1].file != file:
                raise MissingInput(
                    f"rank 0 goes on from {file}, which rank {self.ranks.rank} can't read"
                )
        return loaded


def _own(module: Module, progress: Mapping[str, Any]) -> dict[str, Any]:
    """What a rank has for itself, beside weights and optimizers that are those of all."""
    return {
        "random": random_state(),
        "records": progress["records"],
        "grads": {name: drive["grads"] for name, drive in progress["drives"].items()},
        "statistics": statistics(module),
    }


def _only(state: Mapping[str, Any], module: Module) -> dict[str, Any]:
    """The same of a state that one process saved."""
    return _own(module, state["progress"]) | {"random": state["random"]}


def _share(held: list[dict[str, Any]], ranks: Ranks) -> dict[str, Any]:
    """What one of ``ranks`` takes of the state of more or fewer: all that was gathered, the first."""
    records = Records()
    for own in held:
        records.include(own["records"])
    known = ranks.rank < len(held)
    grads = {name: _sum([own["grads"][name] for own in held]) for name in held[0]["grads"]}
    whole = {
        "random": held[ranks.rank]["random"] if known else None,  # else as seeded for this rank
        "records": records.state_dict(),
        "grads": grads,
        "statistics": [
            (sum(values) / len(held)).to(values[0].dtype)
            for values in zip(*(own["statistics"] for own in held), strict=True)
        ],
    }
    if ranks.first:
        return whole
    return whole | {
        "records": Records().state_dict(),
        "grads": {name: [] for name in grads},
    }


def _sum(grads: list[list[Tensor | None]]) -> list[Tensor | None]:
    """Gradients of each parameter, weighted as they were gathered, added up over ranks."""
    given = [[grad for grad in column if grad is not None] for column in zip(*grads, strict=True)]
    return [torch.stack(column).sum(0) if column else None for column in given]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _moments(drive: Drive) -> int:
    """Bytes that an optimizer will keep for its parameters, those not made yet too."""
    settings = drive.optimizer.defaults
    each = len(settings["betas"]) if "betas" in settings else int(bool(settings.get("momentum")))
    each += bool(settings.get("amsgrad"))
    groups = drive.optimizer.param_groups
    return each * _bytes(p for group in groups for p in group["params"])


class Best:
    """The best value of each monitored figure, with the weights that reached it."""

    def __init__(self, store: Store, monitor: Mapping[str, str], *, writes: bool = True) -> None:
        self._store = store
        self._monitor = dict(monitor)
        self._writes = writes  # another rank does else, which has the same figures
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
        if self._writes:
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
