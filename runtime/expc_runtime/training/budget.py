"""How much of its budget a training has used."""

import time
from functools import cached_property

from expc_runtime.clocks import EnvSteps, Epochs, Minutes, Updates
from expc_runtime.feeds import TrainingFeed
from expc_runtime.gates import Until
from expc_runtime.module import Module
from expc_runtime.ranks import Ranks

__all__ = ["Budget"]


class Budget:
    """What is gone of ``until``'s budget, over all attempts at a stage."""

    def __init__(self, until: Until, feed: TrainingFeed, module: Module, ranks: Ranks) -> None:
        self._budget = until.budget
        self._until = until
        self._feed = feed
        self._module = module
        self._ranks = ranks
        self.spent = 0.0  # seconds of training in earlier attempts
        self.begin()

    def begin(self) -> None:
        """Time counts from here."""
        self._began = time.monotonic()

    @cached_property
    def total(self) -> int | None:
        """Updates; None where only time ends the training. To be asked once the feed is attached."""
        return self._until.updates(self._feed)

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self._began

    def gone(self) -> tuple[float, float]:
        """How much is used, and how much there is, in seconds or updates."""
        if isinstance(self._budget, Minutes):
            return self.seconds(), self._budget.seconds
        return self._module.updates, self.total or 1

    def steps(self) -> tuple[int, int | None]:
        """The same as people count it: env steps where these are the budget, else updates."""
        if isinstance(self._budget, EnvSteps):
            return self._feed.counts()["env_steps"], self._budget.count
        return self._module.updates, self.total

    def used_up(self) -> bool:
        """By the clock of the first rank; all ranks ask at the same update."""
        done, total = self.gone()
        return self._ranks.of_first(done >= total)

    def __str__(self) -> str:
        """What is used, for people."""
        match self._budget:
            case Epochs():
                return str(Epochs(max(1, self._module.epoch)))
            case Minutes():
                return f"{self.seconds() / 60:.1f} minutes"
            case EnvSteps():
                return str(EnvSteps(self.steps()[0]))
            case _:
                return str(Updates(self._module.updates))
