"""That a training lives, and what it was asked for meanwhile."""

import math
import time

from expc_runtime.feeds import TrainingFeed
from expc_runtime.module import Module
from expc_runtime.ranks import Ranks
from expc_runtime.signals import Requests, Stopped
from expc_runtime.state import Claim
from expc_runtime.training.budget import Budget
from expc_runtime.training.words import Words

__all__ = ["PULSE", "Pulse"]

PULSE = 1.0  # seconds between two looks at the clock and the status


class Pulse:
    """Tells the status and people about once a second; knows of signals, to any of the ranks."""

    def __init__(
        self,
        module: Module,
        feed: TrainingFeed,
        stage: Claim,
        budget: Budget,
        words: Words,
        ranks: Ranks,
    ) -> None:
        self.requests = Requests(lambda: module.wake_at(0.0))
        self._module = module
        self._feed = feed
        self._stage = stage
        self._budget = budget
        self._words = words
        self._ranks = ranks
        self._shown = 0.0  # when it was last said that it lives

    def tick(self) -> None:
        """Between two updates."""
        self._show(f"update {self._module.updates}")
        self._module.wake_at(self._shown + PULSE if self._ranks.first else math.inf)

    def alive(self, doing: str) -> None:
        """In long work beside the updates; raises Stopped after a signal."""
        if self.requests.stop:
            raise Stopped
        if time.monotonic() >= self._shown + PULSE:
            self._show(doing)

    def _show(self, doing: str) -> None:
        self._shown = time.monotonic()
        self.beat()
        part = f"{self._feed.part} {self._module.epoch + 1}"
        self._words.progress.tick(*self._budget.gone(), f"{part}  {doing}")

    def beat(self, *, force: bool = False) -> None:
        """Write how far it is into the status, if it is time or ``force``."""
        done, total = self._budget.gone()
        step, target = self._budget.steps()
        self._stage.beat(
            step=step,
            steps_target=target or round(step * total / max(done, 1e-9)),
            epoch=self._module.epoch,
            force=force,
        )

    def stops(self) -> bool:
        """Whether a rank was asked to stop; then all were. All ranks ask at the same update."""
        asked = self._ranks.gather(self.requests.stop)
        for rank, name in enumerate(asked):
            if name:
                where = f" to rank {rank}" if not all(asked) else ""
                self.requests.stop = f"{name}{where}"
                return True
        return False

    def asks_to_save(self) -> bool:
        """Whether a rank was asked to save since this was last asked; at the same update, too."""
        asked, self.requests.save = self.requests.save, False
        return any(self._ranks.gather(asked))
