"""What `fit` trains on: the one protocol of a feed, whether its rows are read or made by acting."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from expc_runtime.gates import Paced, Until
from expc_runtime.module import Batch, Module
from expc_runtime.ranks import ALONE, Ranks

__all__ = ["TrainingFeed", "Work"]


@dataclass(frozen=True)
class Work:
    """The training that a feed is for."""

    module: Module
    folder: Path  # of the stage
    until: Until
    keep: int  # generations of checkpoints that one may have to go back to
    smoke: bool  # just enough of everything to have run it once
    warn: Callable[[str], None]
    alive: Callable[[str], None]
    """To be called again and again in work that is no update, with what is done, for people.

    Raises Stopped where the training is to stop: what was being measured is measured again by the
    run that goes on, so leave everything as it was between two steps.
    """
    ranks: Ranks = ALONE
    """What shares each batch; a feed whose batches cannot be split raises BadValue for several."""


class TrainingFeed(Paced, Protocol):
    """Batches to train on, and the figures that say how well it went.

    `fit` calls `setup`, `attach`, `load_state_dict` if it goes on, and then epoch by epoch: `chunks`,
    `complete`, `measured` of every split but ``test``. What is said of an update must follow from
    the seed and `state_dict` alone: then a run that was stopped goes on as if it had not been.
    """

    mode: Literal["eval", "train"]  # of the module while it is measured
    nothing: str  # what the floors are about, for people: "constant"
    chance: str  # who reaches them: "one answer for every row"
    part: str  # what ends with a measurement, for people: "epoch"

    def setup(self, device: torch.device, seed: int) -> None:
        """Read what is to be read; ``seed`` is the run's."""
        ...

    def attach(self, work: Work) -> None:
        """Called once, when there is a module, on its device."""
        ...

    @property
    def updates_per_epoch(self) -> int:
        """For schedules; where epochs differ, that of most."""
        ...

    def chunks(self, epoch: int, start: int, stop: int | None) -> Iterator[Iterable[Batch]]:
        """Updates ``start`` to ``stop`` of an epoch, a chunk at a time, each made at its turn."""
        ...

    def complete(self, updates: int) -> None:
        """Do what an epoch or the budget that ends with ``updates`` updates has after the last."""
        ...

    def splits(self) -> list[str]:
        """What is measured, in order; ``test`` only once, at the end."""
        ...

    def measured(self, split: str) -> dict[str, float]:
        """Figures of the module as it is, ``<split>/<name>``."""
        ...

    def sample(self, split: str, rows: int) -> Iterable[Batch]:
        """Batches of ``rows`` rows of a split, or of all where it has fewer; the same at every call
        with the same state, in mixed order, and of about equal size. Asking changes nothing.

        Raises BadValue for a split of which there are none to be had.
        """
        ...

    def floors(self) -> dict[str, float]:
        """What is reached without learning anything, of every split, for some of the figures."""
        ...

    def rises(self, figure: str) -> bool:
        """Whether a larger value of a figure (``<split>/<name>``) is a better one."""
        ...

    def told(self) -> dict[str, float]:
        """Figures of the training itself since they were last asked for, ``train/<name>``."""
        ...

    def counts(self) -> dict[str, int]:
        """Clocks of its own, as ``env_steps``; logged beside every figure."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What result.json says of it."""
        ...

    def origin(self, update: int, rows: Sequence[int] = ()) -> str:
        """Where the batch of an update came from, for people; or where those ``rows`` of it did."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs; what it refers to is on the disk when it returns."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises MissingInput if what it refers to is not there, or damaged."""
        ...
