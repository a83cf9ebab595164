"""An MLP-Mixer over a shogi board."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from expc_runtime.models.boards import CELLS, BoardTokens
from expc_runtime.models.cells import CellLinear
from expc_runtime.models.dropout import Dropout


class MLPMixer(nn.Module):
    """MLPs over cells and over channels (Tolstikhin et al. 2021): board, hand -> (B, width).

    The 81 cells, the hand in the first of them, are normalised and widened to `width`; each of
    `layers` blocks adds an MLP across cells (81 -> `token_width` -> 81) and one across channels
    (`width` -> `channel_width` -> `width`), with layer norm before, GELU and dropout inside, dropout
    after; then a layer norm and the mean over cells.

    `groups` are the blocks.
    """

    def __init__(
        self,
        width: int = 256,
        layers: int = 16,
        token_width: int = 128,
        channel_width: int = 1024,
        dropout: float = 0.15,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = BoardTokens(embedding)
        self.tokens_norm = nn.LayerNorm(self.tokens.features)
        self.widen = nn.Linear(self.tokens.features, width)
        self.groups = nn.ModuleList(
            MixerBlock(width, token_width, channel_width, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, board: Tensor, hand: Tensor | None = None) -> Tensor:
        """Board of integers (B, 9, 9) or (B, 1, 9, 9), hand (B, 14) -> (B, width)."""
        x = cast(Tensor, self.widen(self.tokens_norm(self.tokens.in_corner(board, hand))))
        for group in self.groups:
            x = group(x)
        return cast(Tensor, self.norm(x)).mean(1)


class MixerBlock(nn.Module):
    """x + MLP across cells, then x + MLP across channels."""

    def __init__(self, width: int, token_width: int, channel_width: int, dropout: float) -> None:
        super().__init__()
        self.cells_norm = nn.LayerNorm(width)
        self.cells = AcrossCells(token_width, dropout)
        self.channels_norm = nn.LayerNorm(width)
        self.channels = ResidualMlp(width, channel_width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 81, width) -> (B, 81, width)."""
        x = self.cells(self.cells_norm(x), x)
        return cast(Tensor, self.channels(self.channels_norm(x), x))


class ResidualMlp(nn.Module):
    """Linear, GELU, Linear with dropout after both, and what it is added to."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.up = CellLinear(width, inner)
        self.dropout = Dropout(dropout)
        self.down = CellLinear(inner, width)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        """(..., width) and the same -> the same: `to` + MLP(x)."""
        inner = self.dropout(gelu(self.up(x)))
        return self.dropout.added(self.down(inner), to=to)


class AcrossCells(ResidualMlp):
    """The same along the second last axis: the weights from the left, so that nothing is turned."""

    def __init__(self, inner: int, dropout: float) -> None:
        super().__init__(CELLS, inner, dropout)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        """(B, 81, width) and the same -> the same: `to` + MLP(x)."""
        inner = self.dropout(gelu(_from_left(self.up, x)))
        return self.dropout.added(_from_left(self.down, inner), to=to)


def _from_left(layer: nn.Linear, x: Tensor) -> Tensor:
    """(B, in, width) -> (B, out, width)."""
    weights = layer.weight.expand(x.shape[0], -1, -1)  # `len` would be a constant in ONNX
    return torch.baddbmm(layer.bias[:, None], weights, x)
