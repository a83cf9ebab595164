"""Constant answers, the floor that any model must beat.

Each function reads a whole target column and gives three candidates, float32 of shape (3, ...):
what a head would answer to every sample. Heads combine by index: the first candidates together,
the second, the third. The floor of a loss or of a metric is its best value over the candidates.

On the column it was built from, the first candidate is the best constant there is for every
proper loss without extra weights (cross-entropy, KL, BCE, squared error), and some candidate is
for the accuracy of hard targets. For the others a floor is the value of one constant that a model
must beat too; a better one may exist.

Errors: ValueError for an empty column, a shape that is not the one described, or an id that is no
class.
"""

import torch
from torch import Tensor

__all__ = ["class_logits", "class_probs", "logits", "probs", "real"]

_SURE = 20.0  # a logit that is as good as certain, and finite in every loss and dtype
_ROWS = 65_536  # summed at a time: a float64 copy of a whole column may not fit


def class_logits(target: Tensor, *, classes: int) -> Tensor:
    """(3, C) class logits: log frequency, the same with one added to each count, uniform.

    `target` is ids (N,) or rows (N, C) of non-negative numbers. A class that is never seen has
    the logit -20 in the first; the second is for losses that punish being sure of that. Both have
    their largest entry at the most frequent class.
    """
    return class_probs(target, classes=classes).log().clamp(min=-_SURE)


def class_probs(target: Tensor, *, classes: int) -> Tensor:
    """(3, C) rows of probabilities: as `class_logits`, with zero for a class that is never seen."""
    counts = _counts(target, classes)
    seen = counts.sum()
    if not seen > 0:
        raise ValueError("the target column names no class: all its rows are zero")
    prior = counts / seen
    smoothed = (counts + 1) / (seen + classes)
    return torch.stack([prior, smoothed, torch.full_like(prior, 1 / classes)]).float()


def logits(target: Tensor) -> Tensor:
    """(3, ...) log odds for a target (N, ...) in [0, 1]: logit of the mean, all no, all yes."""
    mean = _mean(target)
    sure = torch.full_like(mean, _SURE)
    return torch.stack([mean.logit().clamp(-_SURE, _SURE), -sure, sure]).float()


def probs(target: Tensor) -> Tensor:
    """(3, ...) probabilities for a target (N, ...) in [0, 1]: the mean, 0, 1."""
    mean = _mean(target)
    return torch.stack([mean, torch.zeros_like(mean), torch.ones_like(mean)]).float()


def real(target: Tensor) -> Tensor:
    """(3, ...) numbers for a target (N, ...): the mean, the (lower) median, 0."""
    mean = _mean(target)
    median = target.median(dim=0).values.to(mean.dtype)
    return torch.stack([mean, median, torch.zeros_like(mean)]).float()


def _counts(target: Tensor, classes: int) -> Tensor:
    """How often each class was seen, (C,) float64."""
    if target.dim() == 2 and target.shape[1] == classes:
        return _total(target)
    if target.dim() != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"the target column is {tuple(target.shape)} of {target.dtype};"
            f" it should be integer class ids (N,) or rows (N, {classes})"
        )
    _not_empty(target)
    low, high = (int(end) for end in target.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"class ids run from {low} to {high}, but there are {classes} classes")
    return torch.bincount(target, minlength=classes).double()


def _mean(target: Tensor) -> Tensor:
    return _total(target) / target.shape[0]


def _total(target: Tensor) -> Tensor:
    """Sum over the first dimension in float64."""
    _not_empty(target)
    starts = range(0, target.shape[0], _ROWS)
    parts = [target[i : i + _ROWS].sum(0, dtype=torch.float64) for i in starts]
    return torch.stack(parts).sum(0)


def _not_empty(target: Tensor) -> None:
    if not target.dim() or not target.shape[0]:
        raise ValueError(f"the target column has no rows: its shape is {tuple(target.shape)}")
