"""Heads: from features to what a loss reads."""

from typing import cast

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Features (..., in_features) -> (..., out), or (...) when `out` is 1.

    One linear layer, or with `hidden` two with GELU between; dropout comes before the last of them.
    """

    def __init__(
        self, in_features: int, *, out: int, hidden: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.out_features = out
        layers: list[nn.Module] = []
        if hidden is not None:
            layers += [nn.Linear(in_features, hidden), nn.GELU()]
        # Identity, so that the weights keep their names whatever the dropout.
        layers.append(nn.Dropout(dropout) if dropout else nn.Identity())
        layers.append(nn.Linear(in_features if hidden is None else hidden, out))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., out), or (...) when out is 1."""
        answer = cast(Tensor, self.layers(features))
        return answer.squeeze(-1) if self.out_features == 1 else answer
