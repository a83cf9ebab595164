"""How many updates belong to how many env steps.

Prefill comes first. Then each step of the environments (a row: one env step of each of them) is
preceded by the updates due: ``pretrain`` of them before the first row, if there are any; else one,
and from there on the whole part of what ``train_ratio`` replayed frames an env step have added up to.
For 1.5 env steps an update: 1, 0, 1, 1, 0, 1, 1, 0, ... In fractions, so it is the same everywhere.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The clocks of a replay; rows are counted from 0, env steps are rows times ``envs``."""

    envs: int
    frames: int  # of one batch
    ratio: Fraction  # replayed frames for each env step
    prefill: int  # env steps
    pretrain: int  # updates
    every: int  # env steps from one evaluation to the next, which falls on their multiples

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError(f"train_ratio={float(self.ratio):g}: must be above 0")
        if self.every // self.envs * self.rate < 1:
            raise ValueError(
                f"an evaluation every {self.every} env steps, but an update takes "
                f"{float(self.frames / self.ratio):g} of them: evaluate less often"
            )

    @property
    def rate(self) -> Fraction:
        """Updates a row."""
        return self.envs * self.ratio / self.frames

    @property
    def prefill_rows(self) -> int:
        return -(-self.prefill // self.envs)

    @property
    def updates_per_epoch(self) -> int:
        return max(1, int(self.every * self.ratio / self.frames))

    def brief(self, rows: int) -> "Schedule":
        """The shortest run there is: ``rows`` of prefill, then an update before every row."""
        ratio = Fraction(self.frames, self.envs)
        return replace(self, prefill=rows * self.envs, pretrain=0, ratio=ratio)

    def rows_before(self, update: int) -> int:
        """Rows that there are when ``update`` (from 0) is made."""
        waited = 0
        if self.pretrain:
            if update < self.pretrain:
                return self.prefill_rows
            update, waited = update - self.pretrain, 1
        return self.prefill_rows + waited + math.ceil(update / self.rate)

    def updates_by(self, rows: int) -> int:
        """Updates that come before row ``rows`` (from 1) is done; none in the prefill."""
        calls = rows - self.prefill_rows
        if calls <= 0:
            return 0
        if self.pretrain:
            calls -= 1
        regular = 1 + math.floor((calls - 1) * self.rate) if calls else 0
        return self.pretrain + regular

    def updates_at(self, env_steps: int) -> int:
        """Updates within a budget; raises ValueError if there are none."""
        updates = self.updates_by(env_steps // self.envs)
        if not updates:
            raise ValueError(
                f"a budget of {env_steps} env steps ends within the prefill of {self.prefill}"
            )
        return updates

    def rows_after(self, epochs: int) -> int:
        """Rows when that many epochs (spans up to an evaluation) are over."""
        first = -(-(self.prefill_rows + 1) * self.envs // self.every)
        return (first + epochs - 1) * self.every // self.envs if epochs else 0
