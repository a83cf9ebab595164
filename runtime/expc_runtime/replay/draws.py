"""Random numbers that follow from what they are for and when: nothing to save, nothing to restore."""

import hashlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws", "generator"]


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """A generator of its own for each seed, purpose and number."""
    digest = hashlib.sha256(f"{purpose} {seed} {number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


class Draws:
    """Row i of (2, envs) float64 in [0, 1): for the environments, and for the choice of actions.

    Made on the host, so that every device plays the same game; moved a block at a time.
    """

    BLOCK = 256

    def __init__(self, seed: int, purpose: str, envs: int, device: torch.device) -> None:
        self._seed, self._purpose, self._envs, self._device = seed, purpose, envs, device
        self._number = -1
        self._block = torch.empty(0)

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        number, place = divmod(index, self.BLOCK)
        if number != self._number:
            drawn = generator(self._seed, self._purpose, number).random((self.BLOCK, 2, self._envs))
            self._block, self._number = torch.from_numpy(drawn).to(self._device), number
        u, v = self._block[place]
        return u, v
