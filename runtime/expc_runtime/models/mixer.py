"""An MLP-Mixer over a shogi board."""

from typing import cast

from torch import Tensor, nn

from expc_runtime.models.boards import CELLS, BoardTokens


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
        self.cells = mlp(CELLS, token_width, dropout)
        self.channels_norm = nn.LayerNorm(width)
        self.channels = mlp(width, channel_width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 81, width) -> (B, 81, width)."""
        x = x + self.cells(self.cells_norm(x).mT).mT
        return x + cast(Tensor, self.channels(self.channels_norm(x)))


def mlp(width: int, inner: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, Linear, with dropout after both."""
    return nn.Sequential(
        nn.Linear(width, inner),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(inner, width),
        nn.Dropout(dropout),
    )
