"""Dropout that costs a quarter on a CPU."""

from typing import cast

import torch
from torch import Tensor, nn

STEPS = 2**16


class Dropout(nn.Dropout):
    """Zeros a share `p` of the numbers in training and scales the others by 1 / (1 - p).

    On a CPU 16 random bits decide about each, where torch draws one of 32 bits by a slower way: `p`
    is rounded to a multiple of 2^-16, and so is the scale. Elsewhere it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        dropped = round(self.p * STEPS)
        if not (self.training and x.is_cpu and 0 < dropped < STEPS):
            return super().forward(x)
        return x * _scales(x, dropped)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """`to` + dropout of ``x``, in one pass where that can be."""
        dropped = round(self.p * STEPS)
        if not (self.training and x.is_cpu and 0 < dropped < STEPS and x.dtype is to.dtype):
            return to + cast(Tensor, self(x))
        return torch.addcmul(to, x, _scales(x, dropped))


def _scales(like: Tensor, dropped: int) -> Tensor:
    """0 for ``dropped`` of 65,536 numbers, else the scale; laid out as ``like``."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()]
    scales = torch.empty(like.numel(), dtype=like.dtype)
    torch.ge(bits, dropped - STEPS // 2, out=scales).mul_(STEPS / (STEPS - dropped))
    return scales.view(like.shape)
