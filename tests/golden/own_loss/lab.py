"""A lab's own code: one file beside the spec."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime.ports import Real


class Line:
    """y = 2 x + 1 + noise."""

    columns: ClassVar[dict[str, str]] = {"x": "features", "y": "real"}

    def __init__(self, rows: int = 100, noise: float = 0.1) -> None:
        self.rows, self.noise = rows, noise

    def tensors(self) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(0)
        x = torch.rand(self.rows, 1, generator=draw)
        noise = self.noise * torch.randn(self.rows, generator=draw)
        return {"x": x, "y": 2 * x[:, 0] + 1 + noise}


class Bend(nn.Module):
    """x (B, 1) -> (B, knots): distances to knots."""

    def __init__(self, knots: int = 8) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.linspace(0, 1, knots))
        self.out_features = knots

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.knots).abs()


class Scale(nn.Module):
    """Features (B, F) -> (B,)."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(in_features) / in_features)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight


def tilted(pred: Real, target: Real, *, tau: float = 0.5, reduction: str = "mean") -> Tensor:
    """Quantile loss (Koenker and Bassett 1978)."""
    miss = target - pred
    loss = torch.maximum(tau * miss, (tau - 1) * miss)
    return {"mean": loss.mean(), "sum": loss.sum(), "none": loss}[reduction]


class ShareUnder(Metric):
    """Share of targets at or under the answer: tau, where the quantile is right."""

    under: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("under", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, pred: Real, target: Real) -> None:
        self.under += (target <= pred).sum()
        self.rows += target.numel()

    def compute(self) -> Tensor:
        return self.under / self.rows


class SignSgd(torch.optim.Optimizer):
    """Steps of one size along the gradient's sign (Bernstein 2018)."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign()
