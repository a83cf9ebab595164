"""Convolutional backbones."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Plain convolutions: image (B, in_channels, H, W) -> features (B, channels[-1]).

    For each entry of `channels` a 3x3 convolution (stride 1 for the first, 2 for the others),
    batch norm unless `norm` is false, ReLU; then the mean over the plane, and dropout. No
    `channels` is a ValueError.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32),
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("ConvNet: channels must name at least one layer")
        self.out_features = channels[-1]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((in_channels, *channels))):
            stride = 1 if i == 0 else 2
            layers.append(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU(inplace=True))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels[-1])."""
        return cast(Tensor, self.layers(image))
