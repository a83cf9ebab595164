"""How the weights of world models start (Hafner et al. 2023, the published code of DreamerV3).

Both take a Linear, Conv2d or ConvTranspose2d, fill it in place and give it back. Fans count a
kernel's area on both sides, so that a convolution starts like the Linear it is at one place.
"""

import math
from typing import TypeVar

import torch
from torch import nn

__all__ = ["hidden_", "output_"]

_CUT_STD = 0.87962566103423978  # of a standard normal cut at two standard deviations

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


@torch.no_grad()
def hidden_(layer: Layer) -> Layer:
    """Normal of variance 2 / (fan_in + fan_out) after the cut at two deviations; bias 0."""
    std = math.sqrt(1.0 / _mean_fan(layer)) / _CUT_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
    return _no_bias(layer)


@torch.no_grad()
def output_(layer: Layer, outscale: float = 1.0) -> Layer:
    """Uniform of variance 2 `outscale` / (fan_in + fan_out); `outscale` 0 answers 0; bias 0."""
    limit = math.sqrt(3.0 * outscale / _mean_fan(layer))
    nn.init.uniform_(layer.weight, -limit, limit)
    return _no_bias(layer)


def _mean_fan(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    if isinstance(layer, nn.Linear):
        return (layer.in_features + layer.out_features) / 2
    return math.prod(layer.kernel_size) * (layer.in_channels + layer.out_channels) / 2


def _no_bias(layer: Layer) -> Layer:
    if layer.bias is not None:
        layer.bias.zero_()
    return layer
