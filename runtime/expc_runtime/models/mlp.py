"""Fully connected backbones."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with ReLU: (B, ...) with `in_features` elements -> (B, hidden[-1]).

    Dropout follows each layer. Without `hidden` the features are the flat input itself, which
    with a head on top is a linear model.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (64, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.out_features = hidden[-1] if hidden else in_features
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((in_features, *hidden)):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
            # Identity, so that the weights keep their names whatever the dropout.
            layers.append(nn.Dropout(dropout) if dropout else nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, out_features)."""
        return cast(Tensor, self.layers(x))
