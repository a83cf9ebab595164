"""Networks around a latent dynamics: image encoder and decoder, heads, actor.

Sizes, norms and initial weights are DreamerV3's (Hafner et al. 2023). Features have any leading
dims. Images are (..., H, W, C) in memory, which to a convolution is channels_last, so nothing is
copied on the way in or out, and a norm over channels is one over the last axis.

Matrices may compute in 16 bits under autocast; softmax, logarithms and draws never do.
"""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expc_runtime import twohot
from expc_runtime.worlds.init import hidden_, output_
from expc_runtime.worlds.sampling import choose, log_mixed, mixed, uniform, wide

__all__ = [
    "Actor",
    "BinaryHead",
    "ConvDecoder",
    "ConvEncoder",
    "RealHead",
    "TwoHotHead",
    "chosen",
    "dense",
    "entropy",
]

Net = TypeVar("Net", bound=nn.Module)

NORM_EPS = 1e-3
SMALLEST = 4  # side of the plane between image and vector
FLOOR = -1e4  # of a logarithm: finite, and exp of it is 0


def dense(in_features: int, out_features: int) -> list[nn.Module]:
    """Linear without bias, LayerNorm, SiLU, with their initial weights."""
    linear = hidden_(nn.Linear(in_features, out_features, bias=False))
    return [linear, nn.LayerNorm(out_features, eps=NORM_EPS), nn.SiLU()]


def _halvings(name: str, size: int) -> int:
    """How often an image is halved on its way to the smallest plane."""
    count = (size // SMALLEST).bit_length() - 1
    if count < 1 or SMALLEST << count != size:
        raise ValueError(f"{name}: size must be 8, 16, 32, 64, ..., not {size}")
    return count


def _channels_last(layers: Net) -> Net:
    """The same, with kernels in the memory order of their images."""
    return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _ChannelNorm(nn.Module):
    """LayerNorm over the channels of a plane (N, C, H, W), then SiLU; channels_last in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, plane: Tensor) -> Tensor:
        return F.silu(self.norm(plane.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """image (..., size, size, in_channels) float in 0..1 -> embed (..., `out_features`).

    The image less 0.5 goes through convolutions (kernel 4, stride 2) with LayerNorm over channels
    and SiLU, with `depth`, 2 `depth`, ... channels, until the plane is 4 x 4; that plane, flat in
    the order (row, column, channel), is the embedding. `size` is a power of two, 8 or more.
    """

    def __init__(self, depth: int = 32, *, in_channels: int = 3, size: int = 64) -> None:
        super().__init__()
        count = _halvings("ConvEncoder", size)
        layers: list[nn.Module] = []
        before = in_channels
        for i in range(count):
            conv = nn.Conv2d(before, depth << i, 4, stride=2, padding=1, bias=False)
            layers += [hidden_(conv), _ChannelNorm(depth << i)]
            before = depth << i
        self.layers = _channels_last(nn.Sequential(*layers))
        self.out_features = SMALLEST * SMALLEST * before

    def forward(self, image: Tensor) -> Tensor:
        """(..., size, size, in_channels) -> (..., out_features)."""
        plane = (image.reshape(-1, *image.shape[-3:]) - 0.5).permute(0, 3, 1, 2)
        embed = self.layers(plane).permute(0, 2, 3, 1)
        return cast(Tensor, embed.reshape(*image.shape[:-3], self.out_features))


class ConvDecoder(nn.Module):
    """features (..., in_features) -> image (..., size, size, 3), the mean on the 0..1 scale.

    A linear layer to a 4 x 4 plane, then transposed convolutions (kernel 4, stride 2) with LayerNorm
    over channels and SiLU, halving the channels down to `depth`; the last one has a bias alone, and
    0.5 is added to what it gives. No squashing: values outside 0..1 are possible.
    """

    def __init__(self, in_features: int, *, depth: int = 32, size: int = 64) -> None:
        super().__init__()
        count = _halvings("ConvDecoder", size)
        self._widest = depth << (count - 1)
        self.linear = output_(nn.Linear(in_features, SMALLEST * SMALLEST * self._widest))
        layers: list[nn.Module] = []
        for i in reversed(range(1, count)):
            conv = nn.ConvTranspose2d(depth << i, depth << (i - 1), 4, 2, padding=1, bias=False)
            layers += [hidden_(conv), _ChannelNorm(depth << (i - 1))]
        self.layers = _channels_last(nn.Sequential(*layers))
        self.last = _channels_last(output_(nn.ConvTranspose2d(depth, 3, 4, 2, padding=1)))

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., size, size, 3)."""
        plane = self.linear(features).view(-1, SMALLEST, SMALLEST, self._widest)
        plane = self.layers(plane.permute(0, 3, 1, 2))
        # The 0.5 goes in with the bias: a pass over the images less.
        bias = cast(Tensor, self.last.bias) + 0.5
        image = F.conv_transpose2d(plane, self.last.weight, bias, 2, 1).permute(0, 2, 3, 1)
        return image.reshape(*features.shape[:-1], *image.shape[1:])


class _Head(nn.Module):
    """`layers` of dense, LayerNorm and SiLU, then a linear layer with bias."""

    def __init__(self, in_features: int, out: int, layers: int, units: int, scale: float) -> None:
        super().__init__()
        widths = [in_features] + [units] * layers
        hidden = [part for before in widths[:-1] for part in dense(before, units)]
        self.layers = nn.Sequential(*hidden, output_(nn.Linear(widths[-1], out), scale))

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.layers(features))


class TwoHotHead(_Head):
    """features (..., in_features) -> logits (..., bins) of a real number, for `twohot_symlog`.

    Starts at zero: uniform logits, whose number is 0.
    """

    table: Tensor

    def __init__(
        self, in_features: int, *, bins: int = 255, layers: int = 2, units: int = 512
    ) -> None:
        super().__init__(in_features, bins, layers, units, scale=0.0)
        self.register_buffer("table", twohot.buckets(bins), persistent=False)

    def mode(self, features: Tensor) -> Tensor:
        """(..., in_features) -> the number (...) the logits stand for, float32."""
        return twohot.mean(self(features), self.table)


class RealHead(_Head):
    """features (..., in_features) -> a real number (...), for `mse`. Starts at zero."""

    def __init__(self, in_features: int, *, layers: int = 2, units: int = 512) -> None:
        super().__init__(in_features, 1, layers, units, scale=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (...)."""
        return super().forward(features).squeeze(-1)

    def mode(self, features: Tensor) -> Tensor:
        """(..., in_features) -> the number (...), float32."""
        return wide(self(features))


class BinaryHead(_Head):
    """features (..., in_features) -> logit (...) of yes, for `bce`."""

    def __init__(self, in_features: int, *, layers: int = 2, units: int = 512) -> None:
        super().__init__(in_features, 1, layers, units, scale=1.0)

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (...)."""
        return super().forward(features).squeeze(-1)

    def prob(self, features: Tensor) -> Tensor:
        """(..., in_features) -> the probability (...) of yes, float32."""
        return wide(self(features)).sigmoid()


class Actor(_Head):
    """features (..., in_features) -> a categorical policy over `actions`.

    Probabilities are (1 - unimix) softmax(logits) + unimix / actions, so that none is ever 0. All
    but the logits is float32, also under autocast.
    """

    def __init__(
        self,
        in_features: int,
        actions: int,
        *,
        layers: int = 2,
        units: int = 512,
        unimix: float = 0.01,
    ) -> None:
        super().__init__(in_features, actions, layers, units, scale=1.0)
        if not 0.0 <= unimix <= 1.0:
            raise ValueError(f"Actor: unimix must be in [0, 1], not {unimix}")
        self.actions = actions
        self.unimix = unimix

    def logits(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., actions), before the mixing."""
        return super().forward(features)

    def probs(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (..., actions)."""
        return mixed(self(features), self.unimix)

    def sample(self, features: Tensor) -> Tensor:
        """(..., in_features) -> one-hot actions (..., actions) with the gradient of `probs`."""
        return self.draw(self(features))

    def log_prob(self, features: Tensor, action: Tensor) -> Tensor:
        """(..., in_features) and one-hot actions (..., actions) -> (...)."""
        return chosen(self.log_probs(self(features)), action)

    def entropy(self, features: Tensor) -> Tensor:
        """(..., in_features) -> (...), in nats."""
        return entropy(self.log_probs(self(features)))

    # The same from logits, for a caller that has them.

    def log_probs(self, logits: Tensor) -> Tensor:
        """Logits (..., actions) -> log-probabilities."""
        return log_mixed(logits, self.unimix)

    def draw(self, logits: Tensor) -> Tensor:
        """Logits (..., actions) -> one-hot actions with the gradient of the probabilities."""
        probs = mixed(logits, self.unimix)
        return choose(probs, uniform(*probs.shape[:-1], device=probs.device))


def chosen(log_probs: Tensor, action: Tensor) -> Tensor:
    """log-probabilities (..., C) of one-hot actions (..., C) -> (...); none flows into the action."""
    return (log_probs * action.detach()).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """-sum_c p_c log p_c (...) of log-probabilities (..., C); 0 log 0 = 0."""
    return -(log_probs.exp() * log_probs.clamp(min=FLOOR)).sum(-1)
