"""A metric of the lab's own: any torchmetrics `Metric` whose `update` takes an answer and a target."""

import torch
from torch import Tensor
from torchmetrics import Metric

from expc_runtime.ports import Prob


class Calibration(Metric):
    """Distance between the mean answer and the share of yes: 0 when the net is neither shy nor bold."""

    higher_is_better = False
    answered: Tensor
    true: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("answered", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("true", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, pred: Prob, target: Prob) -> None:
        """Add one batch: pred (B,) probabilities, target (B,) in {0, 1}."""
        self.answered += pred.sum()
        self.true += target.sum()
        self.rows += target.numel()

    def compute(self) -> Tensor:
        """Absolute difference of the two means."""
        return (self.answered - self.true).abs() / self.rows
