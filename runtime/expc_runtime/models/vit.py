"""Transformers over the cells of a shogi board."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from expc_runtime.models.boards import CELLS, PLANES, BoardTokens, planes
from expc_runtime.models.cells import CellLinear
from expc_runtime.models.dropout import Dropout
from expc_runtime.models.mixer import ResidualMlp


class Encoder(nn.Module):
    """Numbers of each cell (B, 81, in_features) -> (B, width), the mean over cells.

    A linear layer, a learned position for each cell, dropout, `depth` blocks, layer norm.
    `checkpointing` keeps only the input of each block and computes the rest again in the backward
    pass. `width` that `heads` does not divide is a ValueError.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.checkpointing = checkpointing
        self.widen = nn.Linear(in_features, width)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(CELLS, width), std=0.02))
        self.dropout = Dropout(dropout)
        inner = round(width * mlp_ratio)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, inner, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, 81, in_features) -> (B, width)."""
        x = cast(Tensor, self.dropout(self.widen(cells) + self.position))
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return cast(Tensor, self.norm(x)).mean(1)


class EncoderBlock(nn.Module):
    """x + attention, then x + MLP, with layer norm before each (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = CellLinear(width, 3 * width)
        self.mix = CellLinear(width, width)
        self.dropout = Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = ResidualMlp(width, inner, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, cells, width) -> (B, cells, width)."""
        x = self.dropout.added(self.attention(self.attention_norm(x)), to=x)
        return cast(Tensor, self.mlp(self.mlp_norm(x), x))

    def attention(self, x: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(width / heads)) v of each head, mixed; no dropout of the weights."""
        split = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        heard = scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.mix(heard.transpose(1, 2).flatten(2)))


class ViT(nn.Module):
    """A transformer over 81 cells (Dosovitskiy et al. 2021): board, hand -> (B, width).

    Cells are embedded, the hand in the first of them. `groups` are the blocks. A `width` that
    `heads` does not divide is a ValueError.
    """

    def __init__(
        self,
        width: int = 512,
        depth: int = 6,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        checkpointing: bool = False,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        self.out_features = width
        self.tokens = BoardTokens(embedding)
        self.encoder = Encoder(
            self.tokens.features, width, depth, heads, mlp_ratio, dropout, checkpointing
        )

    @property
    def groups(self) -> nn.ModuleList:
        """The blocks."""
        return self.encoder.blocks

    def forward(self, board: Tensor, hand: Tensor | None = None) -> Tensor:
        """Board of integers (B, 9, 9) or (B, 1, 9, 9), hand (B, 14) -> (B, width)."""
        return cast(Tensor, self.encoder(self.tokens.in_corner(board, hand)))


class PlanesViT(nn.Module):
    """A transformer over 81 cells of 104 binary planes: board, hand -> (B, width).

    The planes are made from board and hand as `boards.planes` says, on their device, so nobody
    stores them. `groups` are the blocks. A `width` that `heads` does not divide is a ValueError.
    """

    def __init__(
        self,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 3.0,
        dropout: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.out_features = width
        self.encoder = Encoder(PLANES, width, depth, heads, mlp_ratio, dropout, checkpointing)

    @property
    def groups(self) -> nn.ModuleList:
        """The blocks."""
        return self.encoder.blocks

    def forward(self, board: Tensor, hand: Tensor | None = None) -> Tensor:
        """Board of integers (B, 9, 9) or (B, 1, 9, 9), hand (B, 14) -> (B, width)."""
        cells = planes(board, hand).flatten(2).mT
        return cast(Tensor, self.encoder(cells.to(self.encoder.widen.weight.dtype)))
