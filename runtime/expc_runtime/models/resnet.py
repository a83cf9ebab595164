"""A residual network over a shogi board."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import relu

from expc_runtime.models.boards import SIDE, BoardTokens
from expc_runtime.models.convs import Conv2d


class ResNet(nn.Module):
    """Bottleneck blocks (He et al. 2016): board (B, 9, 9), hand (B, 14) -> (B, out_features).

    Stage i has `blocks[i]` blocks of `expansion * channels[i]` channels, around 3x3 convolutions of
    `channels[i]`; its first block has stride `strides[i]`. There is no stem: the first stage reads
    the embedded cells, each with the hand beside it. At the end the mean over the plane. With the
    defaults 9x9 cells become 9, 5, 3 and 2 to a side.

    `groups` are the stages. Lists of unequal length, or empty ones, are a ValueError.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        strides: Sequence[int] = (1, 2, 2, 2),
        expansion: int = 4,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        if not len(channels) == len(blocks) == len(strides) > 0:
            raise ValueError(
                "ResNet: channels, blocks and strides each have one entry for a stage, not "
                f"{len(channels)}, {len(blocks)} and {len(strides)}"
            )
        self.tokens = BoardTokens(embedding)
        self.groups = nn.ModuleList()
        before = self.tokens.features
        for inner, count, stride in zip(channels, blocks, strides, strict=True):
            after = expansion * inner
            stage = [Bottleneck(before, inner, after, stride)]
            stage += [Bottleneck(after, inner, after, 1) for _ in range(count - 1)]
            self.groups.append(nn.Sequential(*stage))
            before = after
        self.out_features = before

    def forward(self, board: Tensor, hand: Tensor | None = None) -> Tensor:
        """Board of integers (B, 9, 9) or (B, 1, 9, 9), hand (B, 14) -> (B, out_features)."""
        cells = self.tokens.everywhere(board, hand)
        x = cells.view(-1, SIDE, SIDE, self.tokens.features).permute(0, 3, 1, 2)  # channels last
        for group in self.groups:
            x = cast(Tensor, group(x))
        return x.mean((2, 3))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm; a 1x1 on the skip where the shape changes."""

    def __init__(self, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        self.narrow = Conv2d(before, inner, 1)
        self.narrow_norm = nn.BatchNorm2d(inner)
        self.spatial = Conv2d(inner, inner, 3, stride)
        self.spatial_norm = nn.BatchNorm2d(inner)
        self.widen = Conv2d(inner, after, 1)
        self.widen_norm = nn.BatchNorm2d(after)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(Conv2d(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, ceil(H / stride), ceil(W / stride))."""
        y = relu(self.narrow_norm(self.narrow(x)), inplace=True)
        y = relu(self.spatial_norm(self.spatial(y)), inplace=True)
        y = cast(Tensor, self.widen_norm(self.widen(y)))
        return relu(y.add_(self.skip(x)), inplace=True)
