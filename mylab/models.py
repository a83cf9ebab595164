"""A net of the lab's own. It only needs keyword parameters and `out_features`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Fourier(nn.Module):
    """point (B, 2) -> (B, out_features): an MLP on sines and cosines of learned directions (Tancik et al. 2020)."""

    def __init__(self, waves: int = 32, scale: float = 1.0, hidden: Sequence[int] = (32,)) -> None:
        super().__init__()
        self.directions = nn.Linear(2, waves)
        nn.init.normal_(self.directions.weight, std=scale)
        widths = [2 * waves, *hidden]
        layers = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Linear(before, after), nn.SiLU())
        ]
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, point: Tensor) -> Tensor:
        """Features of each point."""
        angle = self.directions(point)
        features: Tensor = self.layers(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return features
