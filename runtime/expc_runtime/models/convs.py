"""Convolutions without bias that stay fast on a CPU where planes are small and weights large."""

from collections.abc import Iterator
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

SMALL = 3  # cells to a side of the plane that comes out
TINY = 2


class Conv2d(nn.Conv2d):
    """A convolution with a `side` of 1 or 3, padded to keep the plane, without bias.

    Where a plane has few cells, oneDNN spends its time on the order of the weights, and a 3x3
    convolution on padding: of 36 products of a 2x2 plane 20 are with zeros. On a CPU in training
    these are matrix products instead, of what there is; the gradient of a 3x3 on a 2x2 plane is then
    not differentiable once more. Elsewhere, and in what is compiled, it is torch's own.
    """

    def __init__(self, before: int, after: int, side: int, stride: int = 1) -> None:
        super().__init__(before, after, side, stride=stride, padding=side // 2, bias=False)
        self.step = stride
        # Taps of a 3x3 are then matrices as they lie, and activations are channels last anyway.
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, ceil(H / stride), ceil(W / stride))."""
        sides = [_after(side, self.step) for side in x.shape[2:]]
        plain = x.is_cpu and x.dtype is self.weight.dtype and not torch.is_autocast_enabled("cpu")
        trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not (plain and trains and max(sides) <= SMALL):
            return super().forward(x)
        if self.kernel_size == (1, 1):
            cells = x.permute(0, 2, 3, 1)
            if self.step > 1:
                cells = cells[:, :: self.step, :: self.step]
            return linear(cells, self.weight.flatten(1)).permute(0, 3, 1, 2)
        if sides != [TINY, TINY]:
            return super().forward(x)
        return cast(Tensor, _Taps.apply(x, self.weight, self.step))  # type: ignore[no-untyped-call]


class _Taps(torch.autograd.Function):
    """A padded 3x3 convolution as one matrix product for each of the nine weights of a cell.

    x (B, C, H, W), weight (O, C, 3, 3) -> (B, O, 2, 2), computed with channels last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        cells = x.permute(0, 2, 3, 1)
        made = cells.new_zeros(len(x), TINY, TINY, len(weight))
        for weights, read, written in _taps(cells, stride):
            at = made[written]
            at += (cells[read].flatten(0, 2) @ weight[weights].T).view(at.shape)
        return made.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight = torch.zeros_like(x), torch.empty_like(weight)
        cells, to_cells, slope = (t.permute(0, 2, 3, 1) for t in (x, to_x, slope))
        for weights, read, written in _taps(cells, ctx.stride):
            slopes, at = slope[written].flatten(0, 2), to_cells[read]
            at += (slopes @ weight[weights]).view(at.shape)
            torch.mm(slopes.T, cells[read].flatten(0, 2), out=to_weight[weights])
        return to_x, to_weight, None


Where = tuple[slice, ...]


def _taps(read: Tensor, stride: int) -> Iterator[tuple[Any, Where, Where]]:
    """For each weight of a cell: which it is, the cells that it reads and those that it writes."""
    rows, columns = (list(_reach(read.shape[axis], stride)) for axis in (1, 2))
    every = slice(None)
    for (y, from_y, to_y), (x, from_x, to_x) in product(rows, columns):
        yield (every, every, y, x), (every, from_y, from_x), (every, to_y, to_x)


def _reach(before: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: each of three weights, with the cells that are no padding."""
    for at in range(3):
        inside = [cell for cell in range(TINY) if 0 <= cell * stride + at - 1 < before]
        first, last = (inside[end] * stride + at - 1 for end in (0, -1))
        yield at, slice(first, last + 1, stride), slice(inside[0], inside[-1] + 1)


def _after(side: int, stride: int) -> int:
    return (side - 1) // stride + 1
