"""Metrics: torchmetrics with sums for states, so that an epoch is exact whatever the batch size.

`update(pred, target)` takes one batch and never waits for the device; `compute()` gives a 0-dim
float64 tensor, NaN only if nothing was seen. (float64, because 95 right of 100 must reach a gate
of 0.95, and in float32 it does not.)

Metrics with a `threshold` read `pred` as it is given: answer yes where pred >= threshold. So 0.5
fits probabilities and 0 fits logits. A target means yes where target >= 0.5. Shapes must agree
exactly: ValueError.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "F1",
    "Accuracy",
    "BinaryAccuracy",
    "Brier",
    "ExactMatch",
    "MeanAbsoluteError",
    "SampleF1",
    "TopK",
]

_EPS = 1e-8


class _Mean(Metric):
    """Sum of scores over the number of scores."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The mean so far, 0-dim float64."""
        return self.total / self.count

    def _add(self, scores: Tensor) -> None:
        self.total += scores.sum(dtype=None if scores.dtype == torch.bool else torch.float64)
        self.count += scores.numel()

    def _add_rows(self, scores: Tensor, live: Tensor) -> None:
        self.total += (scores * live).sum(dtype=torch.float64)
        self.count += live.sum()


@runtime_checkable
class Answers(Protocol):
    """A metric that can tell whether it has seen one answer only."""

    def alike(self) -> Tensor:
        """0-dim bool: of more than one answer read, all said the same."""
        ...


class _Said(_Mean):
    """A mean of scores of answers that are yes or no, or a class."""

    lowest: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lowest", torch.tensor(2**62), dist_reduce_fx="min")
        self.add_state("highest", torch.tensor(-1), dist_reduce_fx="max")

    def alike(self) -> Tensor:
        return (self.lowest == self.highest) & (self.count > 1)

    def _saw(self, said: Tensor) -> None:
        low, high = (_bytes(said) if said.dtype == torch.bool else said).aminmax()
        self.lowest = torch.minimum(self.lowest, low)
        self.highest = torch.maximum(self.highest, high)


class Accuracy(_Said):
    """Share of rows of class logits (..., C) whose largest entry is the right class.

    The target is class ids (...) or rows (..., C), whose class is their largest entry; an
    all-zero row has no class and is not counted.
    """

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch."""
        ids, said = _are_ids("Accuracy", pred, target), pred.argmax(-1)
        self._saw(said)
        if ids:
            self._add(said == target)
        else:
            self._add_rows(said == target.argmax(-1), target.any(-1))


class TopK(_Mean):
    """How much of the target the `k` largest class logits (..., C) hold, mean over rows.

    Class ids (...): 1 if the id is among them. Rows (..., C): with n positive entries, the number
    of those among the k divided by min(k, n); a row without any is not counted. `k` over C is a
    ValueError.
    """

    def __init__(self, *, k: int = 5) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"TopK: k must be 1 or more, not {k}")
        self.k = k

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch."""
        ids = _are_ids("TopK", pred, target)
        if self.k > pred.shape[-1]:
            raise ValueError(f"TopK: k = {self.k}, but there are {pred.shape[-1]} classes")
        best = pred.topk(self.k, dim=-1).indices
        if ids:
            self._add((best == target.unsqueeze(-1)).any(-1))
            return
        positive = target > 0
        found, wanted = positive.gather(-1, best).sum(-1), positive.sum(-1)
        self._add_rows(found / wanted.clamp(min=1, max=self.k), wanted > 0)


class BinaryAccuracy(_Said):
    """Share of elements where (pred >= threshold) == (target >= 0.5)."""

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch of any shape."""
        said, true = _answers("BinaryAccuracy", pred, target, self.threshold)
        self._saw(said)
        self._add(said == true)


class ExactMatch(_Said):
    """Share of rows (B, ...) with every element right."""

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch; the first dimension counts the rows."""
        said, true = _answers("ExactMatch", pred, target, self.threshold)
        self._saw(said)
        self._add(_bytes(_by_row(said == true)).amin(-1) > 0)


class SampleF1(_Said):
    """F1 of each row (B, ...), mean over rows; a row with nothing to find and nothing found is 1.

    P = TP / (TP + FP + 1e-8), R = TP / (TP + FN + 1e-8), F1 = 2 P R / (P + R + 1e-8), in float32.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch; the first dimension counts the rows."""
        said, true = _answers("SampleF1", pred, target, self.threshold)
        self._saw(said)
        said, true = _by_row(said), _by_row(true)
        each = (said & true, said, true)
        found, claimed, wanted = (_bytes(m).sum(-1, dtype=torch.float32) for m in each)
        precision, recall = found / (claimed + _EPS), found / (wanted + _EPS)
        f1 = 2 * precision * recall / (precision + recall + _EPS)
        self._add(torch.where(claimed + wanted == 0, 1.0, f1))


class F1(Metric):
    """2 TP / (2 TP + FP + FN) over all elements; 1 if there was nothing to find or found."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 1.0

    found: Tensor
    claimed: Tensor
    wanted: Tensor
    count: Tensor

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        for name in ("found", "claimed", "wanted", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch of any shape."""
        said, true = _answers("F1", pred, target, self.threshold)
        self.found += (said & true).sum()
        self.claimed += said.sum()
        self.wanted += true.sum()
        self.count += true.numel()

    def compute(self) -> Tensor:
        """F1 so far, 0-dim float64."""
        # TP + FP is what was claimed and TP + FN what was wanted.
        both = (self.claimed + self.wanted).double()
        f1 = torch.where(both == 0, 1.0, 2 * self.found / both)
        return torch.where(self.count == 0, torch.nan, f1)

    def alike(self) -> Tensor:
        no, yes = self.claimed == 0, self.claimed == self.count
        return (no | yes) & (self.count > 1)


class Brier(_Mean):
    """Mean of (pred - target)^2 over elements; `pred` is probabilities."""

    higher_is_better = False

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch of any shape."""
        self._add(_error("Brier", pred, target).square())


class MeanAbsoluteError(_Mean):
    """Mean of |pred - target| over elements."""

    higher_is_better = False
    plot_upper_bound = None

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add one batch of any shape."""
        self._add(_error("MeanAbsoluteError", pred, target).abs())


def _answers(name: str, pred: Tensor, target: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """What was said and what is true, as booleans."""
    _same_shape(name, pred, target)
    return _wide(pred) >= threshold, target >= 0.5


def _error(name: str, pred: Tensor, target: Tensor) -> Tensor:
    _same_shape(name, pred, target)
    return _wide(pred) - _wide(target)


def _wide(numbers: Tensor) -> Tensor:
    """At least 32 bits: a threshold or a sum rounded to 16 would move the figure."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def _bytes(flags: Tensor) -> Tensor:
    """Booleans as 0 and 1: on a CPU these are reduced 2 to 50 times as fast."""
    return flags.view(torch.uint8)


def _by_row(elements: Tensor) -> Tensor:
    return elements.reshape(elements.shape[0], -1)


def _are_ids(name: str, pred: Tensor, target: Tensor) -> bool:
    """True for class ids (...), False for rows (..., C)."""
    if pred.dim() and pred.shape == target.shape:
        return False
    if pred.dim() and pred.shape[:-1] == target.shape and not target.is_floating_point():
        return True
    raise ValueError(
        f"{name}: class logits {tuple(pred.shape)} do not go with target {tuple(target.shape)}"
        f" of {target.dtype}; it takes integer ids (...) or rows (..., C)"
    )


def _same_shape(name: str, pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ValueError(
            f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
        )
