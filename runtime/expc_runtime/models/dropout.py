"""Dropout that costs a quarter on a CPU."""

from typing import cast

import torch
from torch import Tensor, nn

STEPS = 2**16


class Dropout(nn.Dropout):
    """Zeros a share `p` of the numbers in training and scales the others by 1 / (1 - p).

    On a CPU 16 random bits decide about each, where torch draws one of 32 bits by a slower way: `p`
    is rounded to a multiple of 2^-16, and so is the scale. Elsewhere, and in what is compiled, it is
    torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        dropped = self._dropped(x)
        return x * _scales(x, dropped) if dropped else super().forward(x)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """`to` + dropout of ``x``, in one pass where that can be."""
        dropped = self._dropped(x)
        if not (dropped and x.dtype is to.dtype):
            return to + cast(Tensor, self(x))
        return torch.addcmul(to, x, _scales(x, dropped))

    def _dropped(self, x: Tensor) -> int:
        """Of 65,536 numbers; 0 where torch's own drops them, or none are or all."""
        dropped = round(self.p * STEPS)
        here = self.training and x.is_cpu and not torch.compiler.is_compiling()
        return dropped if here and dropped < STEPS else 0


def _scales(like: Tensor, dropped: int) -> Tensor:
    """0 for ``dropped`` of 65,536 numbers, else the scale; of the shape of ``like``."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()]
    scales = torch.empty(like.numel(), dtype=like.dtype)
    torch.ge(bits, dropped - STEPS // 2, out=scales).mul_(STEPS / (STEPS - dropped))
    return scales.view(like.shape)
