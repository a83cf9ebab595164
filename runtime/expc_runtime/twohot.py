"""Two-hot coding of real numbers (Hafner et al. 2023): symlog, and weights on the two nearest buckets.

Buckets are linspace(-20, 20, bins) on the symlog scale. Everything here computes in at least float32,
inside and outside autocast.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LIMIT", "buckets", "cross_entropy", "mean", "symexp", "symlog"]

LIMIT = 20.0
_NARROW = (torch.float16, torch.bfloat16)


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(y: Tensor) -> Tensor:
    """sign(y) (exp |y| - 1), elementwise; the inverse of `symlog`."""
    return y.sign() * y.abs().expm1()


def buckets(bins: int) -> Tensor:
    """The centres (bins,) float32 on the symlog scale. Fewer than two bins are a ValueError."""
    if bins < 2:
        raise ValueError(f"two-hot: at least 2 bins, not {bins}")
    return torch.linspace(-LIMIT, LIMIT, bins)


def mean(logits: Tensor, table: Tensor) -> Tensor:
    """Logits (..., bins) and their `buckets` -> the number (...) they stand for.

    symexp(sum_b softmax(logits)_b bucket_b); 16-bit logits give float32.
    """
    wide = logits.float() if logits.dtype in _NARROW else logits
    # Not a product with a vector: autocast would compute that in 16 bits.
    return symexp((wide.softmax(-1) * table).sum(-1))


def cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """-log p (...) of the two-hot code of the numbers `x` (...) under logits (..., bins).

    The weight is split linearly between the neighbours of symlog(x); beyond the last bucket all of
    it is there. A NaN in `x` gives a NaN.
    """
    below, share = _place(symlog(x), logits.shape[-1])
    near = F.log_softmax(logits, dim=-1).gather(-1, torch.stack((below, below + 1), -1))
    return -torch.lerp(near[..., 0], near[..., 1], share)


def _place(y: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Index of the bucket below `y`, int64, and the share of the one above, in [0, 1]."""
    last = bins - 1
    # Counted from the middle: near zero, where rewards are, float32 is finest there.
    middle, odd = divmod(last, 2)
    place = y.clamp(-LIMIT, LIMIT) * (last / (2 * LIMIT)) + 0.5 * odd
    low = place.floor().clamp(max=last - 1 - middle)
    index = (low + middle).long().clamp(0, last - 1)  # a NaN has no index: any, with a NaN share
    return index, place - low
