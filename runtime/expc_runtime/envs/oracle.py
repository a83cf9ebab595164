"""The best policy of Visual Pin Pad, to test that an environment pays, and how much at most."""

import torch
from torch import Tensor

from expc_runtime.envs.automaton import ACTIONS
from expc_runtime.envs.pinpad import PinPad

__all__ = ["Oracle"]


class Oracle:
    """Shortest ways to a reward in the games of ``env``'s layout and targets.

    Attributes:
        to_go: (S,) int64: the least number of steps from each state to one that pays, 0 where the
            state pays, -1 where there is no way.
        plan_length: (168,) int64: the same from each spawn.

    Shortest ways by sweeps over all states at once: as many as the longest way has steps.
    """

    def __init__(self, env: PinPad) -> None:
        tables = env.tables
        after = tables.step[:, 0].view(ACTIONS, tables.states)
        never = tables.states + 1
        to_go = torch.where(tables.pays, 0, never)
        while True:
            better = torch.minimum(to_go, 1 + to_go[after].amin(0))
            if torch.equal(better, to_go):
                break
            to_go = better
        self.to_go = torch.where(to_go < never, to_go, -1)
        self.plan_length = self.to_go[tables.first]
        self._best = to_go[after].argmin(0)

    def act(self, env: PinPad) -> Tensor:
        """(B,) int64: the best action of each game; stay during a countdown or with no way."""
        best = self._best.index_select(0, env.state)
        return best.masked_fill(env.countdown > 0, 0)
