"""Constant answers, the floor that any model must beat.

Each function reads a whole target column, a slice of rows at a time, and gives candidates, float32 of
shape (K, ...): what a head would answer to every sample. Heads combine by index: the first candidates
together, the second, the third; a head that has no more repeats its last. The floor of a loss or of a
metric is its best value over the candidates.

On the column it was built from, the first candidate is the best constant there is for every
proper loss without extra weights (cross-entropy, KL, BCE, squared error), and some candidate is
for the accuracy of hard targets. Of labels that are many at once there are up to two more
candidates: of the sets of the k most frequent labels, for a ladder of k, the one with the best F1
of a row, and the one with the best F1 over all rows. For the others a floor is the value of one
constant that a model must beat too; a better one may exist.

Few candidates matter: each costs a pass over what is measured, before training begins.

Errors: ValueError for an empty column, a shape that is not the one described, or an id that is no
class.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from expc_runtime.data.packed import Column

__all__ = ["class_logits", "class_probs", "logits", "probs", "real"]

_SURE = 20.0  # a logit that is as good as certain, and finite in every loss and dtype
_NUMBERS = 2**20  # read at a time: what a cache holds, and no dense copy of a whole column
_YES = 0.5  # a target from here on means yes, as `expc_runtime.metrics` reads it
_LADDER = (0.125, 0.25, 0.375, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.4, 2.0)
"""Sizes of the sets of most frequent labels, over the mean number of labels of a row. The best for
sample F1 is a little below that mean (0.70 of it for legal moves in shogi), and F1 is flat there."""


def class_logits(target: Column, *, classes: int) -> Tensor:
    """(3, C) class logits: log frequency, the same with one added to each count, uniform.

    `target` is ids (N,) or rows (N, C) of non-negative numbers. A class that is never seen has
    the logit -20 in the first; the second is for losses that punish being sure of that. Both have
    their largest entry at the most frequent class.
    """
    return class_probs(target, classes=classes).log().clamp(min=-_SURE)


def class_probs(target: Column, *, classes: int) -> Tensor:
    """(3, C) rows of probabilities: as `class_logits`, with zero for a class that is never seen."""
    counts = _counts(target, classes)
    seen = counts.sum()
    if not seen > 0:
        raise ValueError("the target column names no class: all its rows are zero")
    prior = counts / seen
    smoothed = (counts + 1) / (seen + classes)
    return torch.stack([prior, smoothed, torch.full_like(prior, 1 / classes)]).float()


def logits(target: Column) -> Tensor:
    """(K, ...) log odds for a target (N, ...) in [0, 1]: logit of the mean, all no, all yes, sets.

    A set is yes to the most frequent labels and no to the others. There are one or two, so K is 4
    or 5; none if a row has one number, then K is 3.
    """
    mean = _mean(target)
    answers = torch.stack([torch.zeros_like(mean), torch.ones_like(mean), *_sets(target, mean)])
    sure = (2 * answers - 1) * _SURE
    return torch.cat([mean.logit().clamp(-_SURE, _SURE)[None], sure]).float()


def probs(target: Column) -> Tensor:
    """(K, ...) probabilities for a target (N, ...) in [0, 1]: the mean, 0, 1, sets as in `logits`."""
    mean = _mean(target)
    sets = _sets(target, mean)
    return torch.stack([mean, torch.zeros_like(mean), torch.ones_like(mean), *sets]).float()


def _sets(target: Column, mean: Tensor) -> list[Tensor]:
    """The best sets for F1 as 0 and 1, of the shape of ``mean``, the smaller one first."""
    ladder = _ladder(mean)
    if not len(ladder):
        return []
    return [ladder[place].view_as(mean) for place in _best_for_f1(target, ladder)]


def _ladder(mean: Tensor) -> Tensor:
    """The k most frequent labels as 0 and 1, (sets, labels), smaller sets first."""
    labels = mean.numel()
    order = mean.flatten().argsort(descending=True, stable=True)
    wanted = {round(float(mean.sum()) * share) for share in _LADDER}
    sizes = torch.tensor(sorted(size for size in wanted if 0 < size < labels), dtype=torch.int64)
    places = torch.empty_like(order)
    places[order] = torch.arange(labels, device=order.device)
    return (places < sizes.to(order.device)[:, None]).to(mean.dtype)


def _best_for_f1(target: Column, sets: Tensor) -> list[int]:
    """Which sets have the best mean F1 of a row, and the best F1 over all rows; each once.

    F1 is 2 TP / (labels of the set + labels of the row); both come of one matrix product.
    """
    sizes = sets.sum(1)
    by_row, pooled = torch.zeros_like(sizes), torch.zeros_like(sizes)
    labels = torch.zeros_like(sizes[0])
    counted = torch.cat([sets, torch.ones_like(sets[:1])]).float().T
    for rows in _slices(target):
        hits = ((rows.flatten(1) >= _YES).float() @ counted).double()
        found, held = hits[:, :-1], hits[:, -1:]
        by_row += (2 * found / (held + sizes)).sum(0)
        pooled += found.sum(0)
        labels += held.sum()
    pooled = 2 * pooled / (labels + len(target) * sizes)
    return sorted({int(by_row.argmax()), int(pooled.argmax())})


def real(target: Column) -> Tensor:
    """(3, ...) numbers for a target (N, ...): the mean, the (lower) median, 0."""
    mean = _mean(target)
    median = target[:].median(dim=0).values.to(mean.dtype)
    return torch.stack([mean, median, torch.zeros_like(mean)]).float()


def _counts(target: Column, classes: int) -> Tensor:
    """How often each class was seen, (C,) float64."""
    if target.dim() == 2 and target.shape[1] == classes:
        return _total(target)
    if target.dim() != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"the target column is {tuple(target.shape)} of {target.dtype};"
            f" it should be integer class ids (N,) or rows (N, {classes})"
        )
    counts = []
    for ids in _slices(target):
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"class ids run from {low} to {high}, but there are {classes} classes")
        counts.append(torch.bincount(ids, minlength=classes).double())
    return torch.stack(counts).sum(0)


def _mean(target: Column) -> Tensor:
    return _total(target) / target.shape[0]


def _total(target: Column) -> Tensor:
    """Sum over the first dimension in float64."""
    return torch.stack([rows.sum(0, dtype=torch.float64) for rows in _slices(target)]).sum(0)


def _slices(target: Column) -> Iterator[Tensor]:
    """The rows, as many at a time as may be dense."""
    if not target.dim() or not target.shape[0]:
        raise ValueError(f"the target column has no rows: its shape is {tuple(target.shape)}")
    rows = max(1, _NUMBERS // max(1, target.shape[1:].numel()))
    for start in range(0, target.shape[0], rows):
        yield target[start : start + rows]
