"""One attempt at training a stage: what it was asked, what it works with, what it goes on from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expc_runtime.attempt import Attempt
from expc_runtime.checkpoint import Checkpoint
from expc_runtime.diagnosis.memory import Memory
from expc_runtime.feeds import TrainingFeed
from expc_runtime.flags import Run
from expc_runtime.gates import GateWatch, Until
from expc_runtime.module import Module
from expc_runtime.parts import Origin
from expc_runtime.training.budget import Budget
from expc_runtime.training.measuring import Figures, NormStatistics
from expc_runtime.training.pulse import Pulse
from expc_runtime.training.saving import Best, Saves
from expc_runtime.training.words import Words

__all__ = ["Asked", "Training"]


@dataclass(frozen=True)
class Asked:
    """The arguments of `expc_runtime.fit.fit`."""

    build: Callable[[Any], Module]
    cfg: Run
    feed: TrainingFeed
    until: Until
    precision: str
    compile: bool
    checkpoint: Checkpoint
    monitor: dict[str, str]
    init: dict[str, Origin]
    frozen: dict[str, Origin]
    norm_statistics: NormStatistics
    microbatch: float
    file: str
    program: str


@dataclass
class Training:
    """What `prepare` makes, the loop trains and `conclude` ends; its state to save."""

    asked: Asked
    at: Attempt
    device: torch.device
    provenance: dict[str, Any]
    module: Module
    handoff: dict[str, dict[str, Any]]  # what was taken, by part
    words: Words
    budget: Budget
    pulse: Pulse
    figures: Figures
    saves: Saves
    best: Best
    gate: GateWatch | None
    memory: Memory
    ended: bool = False  # by gate or budget; nothing but the result is missing

    @property
    def feed(self) -> TrainingFeed:
        return self.asked.feed

    @property
    def folder(self) -> Path:
        return self.at.stage.folder

    def save(self) -> None:
        """A generation of everything that `restore` takes."""
        self.saves.save(
            self.module,
            self.feed,
            {
                "gate": self.gate.state_dict() if self.gate else {},
                "figures": self.figures.last,
                "other_mode": self.figures.other,
                "means": self.figures.train,
                "logged": self.words.log.lines,
                **self.words.state_dict(),
                "seconds": self.budget.seconds(),
                "ended": self.ended,
            },
        )

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none."""
        state = self.saves.load(self.module, self.feed)
        if state is None:
            return False
        self.best.restore()
        if self.gate:
            self.gate.load_state_dict(state["gate"])
        self.figures.last, self.figures.train = state["figures"], state["means"]
        self.figures.other = state["other_mode"]
        self.words.load_state_dict(state)
        self.budget.spent, self.ended = state["seconds"], state["ended"]
        self.words.log.rewind(state["logged"])
        size, saved_by = self.at.ranks.size, len(state.get("ranks", [None]))
        if saved_by != size:
            self.words.warn(
                f"goes on with {_ranks(size)} where there were {saved_by}: the same batches, but other "
                "draws of dropout, and other rows that batch norm reads together"
            )
        return True


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"
