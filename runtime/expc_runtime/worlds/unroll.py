"""Layers for a loop over time.

A recurrent step multiplies a few rows by large weights. What does not depend on the state is
multiplied for all steps before the loop. Inside it an `Unrolled` multiplies what is left, and the
gradient of its weight is one matrix product over all steps, not one for each.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from expc_runtime.worlds.init import hidden_
from expc_runtime.worlds.sampling import wide

__all__ = ["Cell", "Joined", "Unrolled", "anew"]

NORM_EPS = 1e-3


def anew(state: dict[str, Tensor], start: dict[str, Tensor], is_first: Tensor) -> dict[str, Tensor]:
    """`state` (B, ...) with the rows that are first (B,) taken from `start`.

    Nothing of the old rows is left, not even a NaN, which a product with 0 would keep.
    """
    return {
        name: torch.where(is_first.view(-1, *[1] * (value.dim() - 1)), start[name], value)
        for name, value in state.items()
    }


class Unrolled:
    """x -> base[:, t] + x @ weight.T, the t-th time it is called with x (B, in); gives (B, out).

    `base` (B, T, out), `weight` (out, in). Multiplies in the dtype of autocast, answers in
    float32.
    """

    def __init__(self, base: Tensor, weight: Tensor) -> None:
        dtype = _matmul_dtype(weight)
        self._inputs: list[Tensor] | None = None
        base = base.to(dtype)
        if torch.is_grad_enabled() and weight.requires_grad:
            self._inputs = []
            base = _WeightGradient.apply(base, weight, self._inputs)  # type: ignore[no-untyped-call]
        self._bases: Iterator[Tensor] = iter(base.unbind(1))
        self._weight = weight.detach().to(dtype).t()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self._weight.dtype)
        if self._inputs is not None:
            self._inputs.append(x.detach())
        return wide(torch.addmm(next(self._bases), x, self._weight))


class _WeightGradient(torch.autograd.Function):
    """`base` as it is. Its gradient, with the inputs the loop saw, is also that of `weight`."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:
        ctx.inputs, ctx.dtype = inputs, weight.dtype
        return base.view_as(base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs = torch.stack(ctx.inputs, 1).flatten(0, 1)
        return grad, (grad.flatten(0, 1).t() @ inputs).to(ctx.dtype), None


def _matmul_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class Joined(nn.Module):
    """Linear without bias over concatenated parts, LayerNorm, SiLU; gives (..., out).

    The weight is kept as one piece (out, size) for each part, so that each can be multiplied at
    its own time: `project` gives the sum of those named, `finish` the rest.
    """

    def __init__(self, out: int, **sizes: int) -> None:
        super().__init__()
        whole = hidden_(nn.Linear(sum(sizes.values()), out, bias=False)).weight.detach()
        pieces = torch.split(whole, list(sizes.values()), dim=1)
        self.weight = nn.ParameterDict()
        for name, piece in zip(sizes, pieces, strict=True):
            self.weight[name] = nn.Parameter(piece.clone())
        self.norm = nn.LayerNorm(out, eps=NORM_EPS)

    def project(self, **parts: Tensor) -> Tensor:
        """The products of these parts (..., size), added up: (..., out)."""
        (name, part), *rest = parts.items()
        total = F.linear(part, self.weight[name])
        for name, part in rest:
            weight = self.weight[name]
            if total.dim() == 2:
                total = torch.addmm(total, part, weight.t())
            else:
                total = total + F.linear(part, weight)
        return total

    def finish(self, x: Tensor) -> Tensor:
        """The sum over all parts (..., out) -> the answer (..., out)."""
        return F.silu(self.norm(wide(x)))

    def forward(self, **parts: Tensor) -> Tensor:
        return self.finish(self.project(**parts))


class Cell(nn.Module):
    """The recurrent block of DreamerV3: one Linear of [input, state], LayerNorm over all gates.

    r, c, u of the 3 `size`: new = u' tanh(sigmoid(r) c) + (1 - u') state, u' = sigmoid(u - 1).
    """

    down: Tensor

    def __init__(self, in_features: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.linear = hidden_(nn.Linear(in_features + size, 3 * size, bias=False))
        self.norm = nn.LayerNorm(3 * size, eps=NORM_EPS)
        down = torch.cat([torch.zeros(2 * size), torch.full((size,), -1.0)])
        self.register_buffer("down", down, persistent=False)

    def unrolled(self, batch: int, steps: int) -> Unrolled:
        """[input, state] (B, in + size) -> gates before the norm (B, 3 size), step by step."""
        weight = self.linear.weight
        return Unrolled(weight.new_zeros(()).expand(batch, steps, 3 * self.size), weight)

    def gates(self, x: Tensor) -> Tensor:
        """[input, state] (B, in + size) -> gates before the norm (B, 3 size), float32."""
        return wide(self.linear(x))

    def bias(self) -> Tensor:
        """The norm's bias with the -1 of the update gate in it, made once for a loop."""
        return self.norm.bias + self.down

    def renew(self, gates: Tensor, state: Tensor, bias: Tensor) -> Tensor:
        """Gates before the norm (B, 3 size), state (B, size) -> the new state (B, size)."""
        gates = F.layer_norm(gates, self.norm.normalized_shape, self.norm.weight, bias, NORM_EPS)
        new: Tensor = _Renewed.apply(gates, state)  # type: ignore[no-untyped-call]
        return new


class _Renewed(torch.autograd.Function):
    """lerp(state, tanh(sigmoid(r) c), sigmoid(u)) of gates [r, c, u], in one node of the graph."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, state: Tensor) -> Tensor:
        reset, candidate, update = gates.chunk(3, -1)
        reset, update = reset.sigmoid(), update.sigmoid()
        proposed = torch.mul(reset, candidate).tanh_()
        ctx.save_for_backward(reset, candidate, update, proposed, state)
        return torch.lerp(state, proposed, update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        reset, candidate, update, proposed, state = ctx.saved_tensors
        into_gates = grad.new_empty(*grad.shape[:-1], 3 * grad.shape[-1])
        into_reset, into_candidate, into_update = into_gates.chunk(3, -1)
        taken = grad * update
        into_product = torch.ops.aten.tanh_backward(taken, proposed)
        torch.mul(into_product, reset, out=into_candidate)
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        sigmoid_backward(into_product.mul_(candidate), reset, grad_input=into_reset)
        sigmoid_backward((proposed - state).mul_(grad), update, grad_input=into_update)
        return into_gates, grad - taken
