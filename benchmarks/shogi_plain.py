"""The nets over a shogi board as one would write them from their papers, in torch alone.

Module by module: NCHW, attention as two products with a softmax between, transposes around the
mixer's MLP across cells, `nn.Dropout`. Parameters are declared in the order of `expc_runtime.models`,
so that weights can be copied one by one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    def __init__(self, everywhere: bool) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.embedding = nn.Embedding(256, 32)
        self.hand_projection = nn.Linear(14, 32)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        """(B, 64, 9, 9)."""
        x = self.embedding(board.long()).permute(0, 3, 1, 2)
        h = self.hand_projection(hand.float())
        if self.everywhere:
            return torch.cat([x, h[:, :, None, None].expand(-1, -1, 9, 9)], dim=1)
        corner = torch.zeros_like(x)
        corner[:, :, 0, 0] = h
        return torch.cat([x, corner], dim=1)


class Bottleneck(nn.Module):
    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        after = 4 * inner
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        answer: Tensor = self.relu(y + identity)
        return answer


class PlainResNet(nn.Module):
    width = 2048

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(everywhere=True)
        layers: list[nn.Module] = []
        before = 64
        for inner, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [Bottleneck(before, inner, stride), Bottleneck(4 * inner, inner, 1)]
            before = 4 * inner
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        features: Tensor = self.pool(self.layers(self.tokens(board, hand))).flatten(1)
        return features


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(inner, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        answer: Tensor = self.drop2(self.fc2(x))
        return answer


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(256)
        self.tokens = Mlp(81, 128, 0.15)
        self.norm2 = nn.LayerNorm(256)
        self.channels = Mlp(256, 1024, 0.15)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        answer: Tensor = x + self.channels(self.norm2(x))
        return answer


class PlainMixer(nn.Module):
    width = 256

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(everywhere=False)
        self.input_norm = nn.LayerNorm(64)
        self.input = nn.Linear(64, 256)
        self.blocks = nn.Sequential(*[MixerBlock() for _ in range(16)])
        self.norm = nn.LayerNorm(256)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        x = self.tokens(board, hand).flatten(2).transpose(1, 2)
        features: Tensor = self.norm(self.blocks(self.input(self.input_norm(x)))).mean(1)
        return features


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = (attention @ v).transpose(1, 2).reshape(b, n, c)
        answer: Tensor = self.proj_drop(self.proj(x))
        return answer


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, inner, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        answer: Tensor = x + self.mlp(self.norm2(x))
        return answer


class Transformer(nn.Module):
    def __init__(self, inputs: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 81, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.input = nn.Linear(inputs, width)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, inner) for _ in range(6)])
        self.norm = nn.LayerNorm(width)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, 9, 9) -> (B, width)."""
        x = self.drop(self.input(cells.flatten(2).transpose(1, 2)) + self.position)
        features: Tensor = self.norm(self.blocks(x)).mean(1)
        return features


class PlainViT(nn.Module):
    width = 512

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(everywhere=False)
        self.transformer = Transformer(64, 512, 8, 2048)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        features: Tensor = self.transformer(self.tokens(board, hand))
        return features


class PlainPlanesViT(nn.Module):
    width = 256

    def __init__(self) -> None:
        super().__init__()
        self.transformer = Transformer(104, 256, 4, 768)

    def forward(self, board: Tensor, hand: Tensor) -> Tensor:
        pieces = nn.functional.one_hot(board.long(), 29)[..., 1:].permute(0, 3, 1, 2).float()
        held = []
        for kind, most in enumerate((18, 4, 4, 4, 4, 2, 2) * 2):
            rank = torch.arange(most)
            held.append((hand[:, kind, None] > rank).float()[:, :, None, None].expand(-1, -1, 9, 9))
        features: Tensor = self.transformer(torch.cat([pieces, *held], dim=1))
        return features


class PlainPolicyValue(nn.Module):
    """A backbone with a policy of 1496 moves and a value."""

    def __init__(self, backbone: Callable[[], nn.Module], width: int) -> None:
        super().__init__()
        self.backbone = backbone()
        self.policy = nn.Linear(width, 1496)
        self.value = nn.Linear(width, 1)

    def forward(self, board: Tensor, hand: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(board, hand)
        return self.policy(features), self.value(features).squeeze(-1)
