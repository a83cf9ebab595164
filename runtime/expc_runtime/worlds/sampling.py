"""Random choices that gradients pass through.

Everything here computes in float32 at least, whatever autocast says: float16 has neither 1e-8 nor
1 - 1e-8, and a uniform draw rounded to it gives an exact 0 or 1 once in 4096 draws, hence an
infinite logit. Noise is made apart from its use, so that a whole chunk draws in one call and a
test can give the same noise to two implementations.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "LARGEST_UNIFORM",
    "MAX_STD",
    "SMALLEST_UNIFORM",
    "choose",
    "gumbel",
    "log_mixed",
    "mixed",
    "normal",
    "normal_entropy",
    "normal_kl",
    "sanitised",
    "straight_through",
    "uniform",
    "wide",
]

# 1 - 1e-8 is 1 in float32; the largest number below 1 that it has is 1 - 2**-24.
SMALLEST_UNIFORM = 1e-8
LARGEST_UNIFORM = 1.0 - 2.0**-24

MAX_STD = 100.0
_INF = float("inf")
_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 if it is 16-bit, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def uniform(*shape: int, device: torch.device | None = None) -> Tensor:
    """float32 draws inside (0, 1), neither end included: both have finite logarithms."""
    drawn = torch.rand(shape, dtype=torch.float32, device=device)
    return drawn.clamp_(SMALLEST_UNIFORM, LARGEST_UNIFORM)


def gumbel(*shape: int, device: torch.device | None = None) -> Tensor:
    """float32 draws of -log(-log u): logits plus this have their argmax with softmax's odds."""
    return uniform(*shape, device=device).log_().neg_().log_().neg_()


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Probabilities of `logits` (..., C): (1 - `unimix`) softmax + `unimix` / C."""
    probs = wide(logits).softmax(-1)
    return probs * (1.0 - unimix) + unimix / logits.shape[-1] if unimix else probs


def log_mixed(logits: Tensor, unimix: float) -> Tensor:
    """Logarithm of `mixed`."""
    return mixed(logits, unimix).log() if unimix else wide(logits).log_softmax(-1)


def choose(probs: Tensor, noise: Tensor) -> Tensor:
    """One-hot draw (..., C) from `probs` (..., C), `noise` (...) uniform in (0, 1).

    The class is the number of partial sums of `probs` that are at most `noise` times their total.
    The gradient is straight through: that of `probs`.
    """
    with torch.no_grad():
        sums = probs.cumsum(-1)
        index = (sums <= sums[..., -1:] * noise.unsqueeze(-1)).sum(-1, keepdim=True)
        index.clamp_(max=probs.shape[-1] - 1)
        hard = torch.zeros_like(probs).scatter_(-1, index, 1.0)
    return straight_through(hard, probs)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` exactly (not hard + soft - soft, which rounds), with the gradient of `soft`."""
    return _StraightThrough.apply(hard, soft)  # type: ignore[no-any-return, no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def normal(mean: Tensor, std: Tensor, noise: Tensor, min_std: float = 0.1) -> Tensor:
    """mean + std noise, all (..., S); what `sanitised` counts is replaced here, and only here.

    A NaN mean is taken as 0; a std: NaN and -inf as `min_std`, +inf as 1, then at least
    `min_std` and at most 100.
    """
    drawn: Tensor = _Normal.apply(wide(mean), wide(std), noise, min_std)  # type: ignore[no-untyped-call]
    return drawn


class _Normal(torch.autograd.Function):
    """In a loop over time, a graph of every clamp would cost more than the draw."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor, noise: Tensor, min_std: float) -> Tensor:
        clean = mean.nan_to_num(0.0, _INF, -_INF)
        width = std.nan_to_num(min_std, 1.0, min_std).clamp_(min_std, MAX_STD)
        ctx.save_for_backward(mean, clean, std, width, noise)
        return torch.addcmul(clean, width, noise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        mean, clean, std, width, noise = ctx.saved_tensors
        return grad * (mean == clean), grad * noise * (std == width), None, None


@torch.no_grad()
def sanitised(mean: Tensor, std: Tensor, min_std: float = 0.1) -> Tensor:
    """How many means and deviations `normal` would not take as they are, 0-dim int64."""
    return mean.isnan().sum() + (~((std >= min_std) & (std <= MAX_STD))).sum()


def normal_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) of (..., S), summed: (...)."""
    ratio = std / other_std
    away = (mean - other_mean) / other_std
    return (0.5 * (ratio.square() + away.square() - 1.0) - ratio.log()).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy in nats of N(., std^2) for std (..., S), summed: (...)."""
    return (0.5 + _HALF_LOG_TWO_PI + std.log()).sum(-1)
