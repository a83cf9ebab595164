"""Environments being played: by the module, or at random."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expc_runtime.module import Module
from expc_runtime.ports import Latent
from expc_runtime.replay.environment import Environment

__all__ = ["FIRST", "LAST", "NO_ACTION", "TERMINAL", "Games", "frame_of"]

FIRST, LAST, TERMINAL = 1, 2, 4  # bits of a frame's flags
NO_ACTION = 255  # what led to the first frame of an episode


def frame_of(env: Environment) -> np.dtype[Any]:
    """One frame as the bytes that `Games.record` gives: 262 of them for 16 x 16 cells."""
    cells = ("cells", np.uint8, tuple(env.cells.shape[1:]))
    return np.dtype([cells, ("action", np.uint8), ("flags", np.uint8), ("reward", "<f4")])


class Games:
    """A batch of environments, and what is remembered of each between two frames."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._action = torch.zeros_like(env.is_first, dtype=torch.int64)  # led to this frame
        self._latent: Latent | None = None  # of the frame before; None until the module acts
        self._cells: Tensor | None = None  # of this frame

    def choose(self, module: Module, v: Tensor, policy: str = "sample") -> Tensor:
        """The module's next actions, (B,) int64; ``v`` (B,) in [0, 1) picks those of ``sample``."""
        env = self.env
        if self._latent is None:
            self._latent = module.initial(env.batch)
        taken = F.one_hot(self._action, env.actions).float() * ~env.is_first[:, None]
        with torch.no_grad(), module.autocast:
            image = env.paint_unit(self.cells)
            probs, self._latent = module.act(image, taken, env.is_first, self._latent)
        if policy == "mode":
            return probs.argmax(-1)
        passed = v[:, None] >= probs.double().cumsum(-1)
        return passed.sum(-1).clamp_(max=env.actions - 1)

    def guess(self, v: Tensor) -> Tensor:
        """Uniform random actions."""
        return (v * self.env.actions).long().clamp_(max=self.env.actions - 1)

    def advance(self, action: Tensor, u: Tensor) -> Tensor:
        """One step of all; the reward (B,)."""
        self._action, self._cells = action, None
        return self.env.advance(action, u)

    @property
    def cells(self) -> Tensor:
        """The current frames, unpainted; made once."""
        if self._cells is None:
            self._cells = self.env.cells
        return self._cells

    def record(self, reward: Tensor) -> Tensor:
        """The current frames as bytes, (B, bytes of one frame) uint8."""
        env = self.env
        action = self._action.masked_fill(env.is_first, NO_ACTION)
        flags = FIRST * env.is_first + LAST * env.is_last + TERMINAL * env.is_terminal
        few = torch.stack([action, flags], 1).to(torch.uint8)
        return torch.cat([self.cells.flatten(1), few, reward[:, None].view(torch.uint8)], 1)

    def state_dict(self) -> dict[str, Any]:
        return {
            "env": self.env.state_dict(),
            "action": self._action,
            "latent": self._latent or {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state["env"])
        self._cells = None
        device = self.env.is_first.device
        self._action = state["action"].to(device)
        self._latent = {k: v.to(device) for k, v in state["latent"].items()} or None
