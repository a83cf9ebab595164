"""Losses: `name(pred, target, *, reduction="mean", **params)`.

Conventions shared by all of them:

- `pred` is logits unless the name says otherwise (`mse` and `smooth_l1` take it as it is).
- 16-bit inputs are computed, and returned, in float32, inside and outside autocast; float64 stays
  float64.
- `reduction` is "mean", "sum" or "none". Elementwise losses average over elements; row losses
  (the class dimension is the last one) have one value for each row and average over rows;
  `mse_sum` has one for each image.
- Shapes must agree exactly, nothing is broadcast: ValueError. `pred` that is not floating point:
  TypeError.
- Nothing here reads a value on the host, so a call never waits for the device. The range of
  targets is for the data checks, not for the hot loop.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from expc_runtime import twohot

__all__ = [
    "asymmetric",
    "bce",
    "cross_entropy",
    "focal",
    "gce",
    "kl_div",
    "mse",
    "mse_sum",
    "smooth_l1",
    "twohot_symlog",
]

_NARROW = (torch.float16, torch.bfloat16)
_REDUCTIONS = ("mean", "sum", "none")
_NO_CLASS = torch.iinfo(torch.int32).min  # torch would silently drop rows of class -100
_LARGEST_LOGIT = 100.0
_SMALLEST_LOG_PROB = math.log(1e-7)
_SMALLEST_BASE = 1e-8  # keeps the slope of x**gamma finite at 0 for gamma < 1


def bce(
    pred: Tensor, target: Tensor, *, reduction: str = "mean", pos_weight: float | None = None
) -> Tensor:
    """Binary cross-entropy of logits `pred` (...) against `target` (...) in [0, 1].

    -[w t log s + (1 - t) log(1 - s)] with s = sigmoid(pred), w = `pos_weight` (1 when None).
    """
    pred, target = _elements("bce", pred, target, reduction)
    # new_full is a fill on the device; a tensor made from the float would be a copy from the host.
    weight = None if pos_weight is None else pred.new_full((), pos_weight)
    return F.binary_cross_entropy_with_logits(pred, target, pos_weight=weight, reduction=reduction)


def mse(pred: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Squared error (pred - target)^2; `pred` (...) is taken as it is, probabilities or reals."""
    pred, target = _elements("mse", pred, target, reduction)
    return F.mse_loss(pred, target, reduction=reduction)


def mse_sum(pred: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Squared error of images (..., H, W, C), summed over the last three axes: one value an image.

    Without a 1/2; "mean" averages over images.
    """
    pred, target = _elements("mse_sum", pred, target, reduction)
    if pred.dim() < 3:
        raise ValueError(f"mse_sum: an image is (..., H, W, C), not {tuple(pred.shape)}")
    if reduction == "none":
        return F.mse_loss(pred, target, reduction="none").sum((-3, -2, -1))
    loss = F.mse_loss(pred, target)  # on a CPU thrice as fast as its "sum"
    return loss * (pred.shape[-3:] if reduction == "mean" else pred.shape).numel()


def smooth_l1(
    pred: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d^2 / (2 beta) where d = |pred - target| < `beta`, else d - beta / 2 (Girshick 2015).

    `pred` (...) is taken as it is. `beta` = 0 is the absolute error; a negative one is a
    ValueError.
    """
    pred, target = _elements("smooth_l1", pred, target, reduction)
    _at_least_zero("smooth_l1", "beta", beta)
    return F.smooth_l1_loss(pred, target, reduction=reduction, beta=beta)


def focal(
    pred: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5) of binary logits `pred` (...), `target` (...) in [0, 1].

    -[a t (1 - s)^gamma log s + (1 - a) (1 - t) s^gamma log(1 - s)], s = sigmoid(pred), a =
    `alpha`; without `alpha` both weights are 1. A soft target gives the expected loss of a label
    drawn with that probability. `gamma` < 0 or `alpha` outside [0, 1] is a ValueError.
    """
    pred, target = _elements("focal", pred, target, reduction)
    _at_least_zero("focal", "gamma", gamma)
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ValueError(f"focal: alpha must be in [0, 1], not {alpha}")
    log_yes, log_no = F.logsigmoid(pred), F.logsigmoid(-pred)
    yes, no = target * log_yes, (1 - target) * log_no
    if gamma:
        # (1 - s)^gamma from its logarithm: the slope of a power at 0 is infinite for gamma < 1.
        yes, no = yes * (gamma * log_no).exp(), no * (gamma * log_yes).exp()
    if alpha is not None:
        yes, no = alpha * yes, (1.0 - alpha) * no
    return _reduce(-(yes + no), reduction)


def asymmetric(
    pred: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    gamma_pos: float = 0.0,
    gamma_neg: float = 0.0,
    clip: float = 0.0,
) -> Tensor:
    """Asymmetric loss (Ridnik et al. 2021) of binary logits `pred` (...), `target` (...) in [0, 1].

    -[t (1 - s)^gamma_pos log s + (1 - t) u^gamma_neg log(1 - u)] with s = sigmoid(pred), u =
    max(s - clip, 0): answers of "no" that are already below `clip` cost nothing. All zeros is
    binary cross-entropy. A negative gamma or `clip` outside [0, 1) is a ValueError.
    """
    pred, target = _elements("asymmetric", pred, target, reduction)
    _at_least_zero("asymmetric", "gamma_pos", gamma_pos)
    _at_least_zero("asymmetric", "gamma_neg", gamma_neg)
    if not 0.0 <= clip < 1.0:
        raise ValueError(f"asymmetric: clip must be in [0, 1), not {clip}")
    log_yes, log_no = F.logsigmoid(pred), F.logsigmoid(-pred)
    yes = target * log_yes
    if gamma_pos:
        yes = yes * (gamma_pos * log_no).exp()
    no = (1 - target) * (_shifted_log_no(pred, clip) if clip else log_no)
    if gamma_neg and clip:
        no = no * (pred.sigmoid() - clip).clamp(min=_SMALLEST_BASE).pow(gamma_neg)
    elif gamma_neg:
        no = no * (gamma_neg * log_yes).exp()
    return _reduce(-(yes + no), reduction)


def cross_entropy(
    pred: Tensor, target: Tensor, *, reduction: str = "mean", label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of class logits `pred` (..., C); one value for each row.

    `target` is class ids (...) of an integer type, or rows of probabilities (..., C). -sum_c t_c
    log softmax(pred)_c, where `label_smoothing` e replaces t by (1 - e) t + e / C. Every row
    counts in the mean; an id outside [0, C) is an error of torch (there is no id that means
    "ignore").
    """
    pred, target = _rows("cross_entropy", pred, target, reduction)
    rows, classes = pred.shape[:-1], pred.shape[-1]
    if pred.dim() != 2:  # torch wants the classes second
        target = target.reshape((-1,) if target.shape == rows else (-1, classes))
        pred = pred.reshape(-1, classes)
    loss = F.cross_entropy(
        pred,
        target,
        ignore_index=_NO_CLASS,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss.reshape(rows) if reduction == "none" else loss


def kl_div(pred: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(target || softmax(pred)) of class logits `pred` (..., C); one value for each row.

    `target` is rows of probabilities (..., C); 0 log 0 = 0. "mean" is the sum over classes
    divided by the number of rows that have a target: an all-zero row adds nothing and is not
    counted, so that rows without a target do not make the loss look small. Without any such row
    the mean is 0.
    """
    if pred.shape != target.shape:
        raise _shapes_differ("kl_div", pred, target, "rows of probabilities, the same shape")
    pred, target = _rows("kl_div", pred, target, reduction)
    loss = F.kl_div(F.log_softmax(pred, dim=-1), target, reduction="none").sum(-1)
    if reduction == "mean":
        return loss.sum() / target.any(-1).sum().clamp(min=1)
    return _reduce(loss, reduction)


def gce(
    pred: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    q: float = 0.7,
    negative: float = 0.0,
) -> Tensor:
    """Generalised cross-entropy (Zhang & Sabuncu 2018) of class logits `pred` (..., C), by row.

    sum_c [t_c (1 - p_c^q) / q + negative p_c (1 - t_c)] with p = softmax(pred); logits are
    clamped to +-100 and p to [1e-7, 1]. `target` is class ids (...) or rows of probabilities
    (..., C). q -> 0 is cross-entropy, q = 1 is 1 - p; its gradient is p^q times that of
    cross-entropy, which over many classes is next to nothing at the start. `q` outside (0, 1] is
    a ValueError.
    """
    pred, target = _rows("gce", pred, target, reduction)
    if not 0.0 < q <= 1.0:
        raise ValueError(f"gce: q must be in (0, 1], not {q}")
    log_prob = F.log_softmax(pred.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT), dim=-1)
    log_prob = log_prob.clamp(min=_SMALLEST_LOG_PROB)
    if target.dim() < pred.dim():
        log_right = log_prob.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        loss = torch.expm1(q * log_right) / -q
        if negative:
            loss = loss + negative * (log_prob.exp().sum(-1) - log_right.exp())
    else:
        loss = (target * torch.expm1(q * log_prob)).sum(-1) / -q
        if negative:
            loss = loss + negative * (log_prob.exp() * (1 - target)).sum(-1)
    return _reduce(loss, reduction)


def twohot_symlog(pred: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits `pred` (..., bins) to the two-hot code of numbers `target` (...).

    Hafner et al. 2023, eq. 9: symlog(target) = sign(t) ln(1 + |t|) shares its weight linearly
    between its two neighbours in linspace(-20, 20, bins), 2 bins or more. One value for each
    number; beyond the buckets the last one counts.
    """
    if not pred.dim() or pred.shape[:-1] != target.shape:
        raise _shapes_differ("twohot_symlog", pred, target, "numbers (...) for logits (..., bins)")
    if pred.shape[-1] < 2:
        raise ValueError(f"twohot_symlog: at least 2 bins, not {pred.shape[-1]}")
    pred = _wide("twohot_symlog", pred, reduction)
    return _reduce(twohot.cross_entropy(pred, target.to(pred.dtype)), reduction)


def _elements(name: str, pred: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Both of one shape and of one dtype of at least 32 bits."""
    if pred.shape != target.shape:
        raise _shapes_differ(name, pred, target, "the same shape")
    pred = _wide(name, pred, reduction)
    return pred, target.to(pred.dtype)


def _rows(name: str, pred: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Logits of at least 32 bits; ids as int64, or rows in the dtype of the logits."""
    logits = _wide(name, pred, reduction)
    if pred.dim() and pred.shape == target.shape:
        return logits, target.to(logits.dtype)
    if not pred.dim() or pred.shape[:-1] != target.shape:
        raise _shapes_differ(name, pred, target, "class ids (...) or rows (..., C)")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"{name}: class ids must be integers, not {target.dtype}")
    return logits, target.long()


def _wide(name: str, pred: Tensor, reduction: str) -> Tensor:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{name}: reduction must be mean, sum or none, not {reduction!r}")
    if not pred.is_floating_point():
        raise TypeError(f"{name}: pred must be floating point, not {pred.dtype}")
    return pred.float() if pred.dtype in _NARROW else pred


def _shifted_log_no(pred: Tensor, clip: float) -> Tensor:
    """log(min(1 - s + clip, 1)); the sum is at least `clip`, so its logarithm is safe."""
    return (pred.neg().sigmoid() + clip).clamp(max=1.0).log()


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def _at_least_zero(name: str, param: str, value: float) -> None:
    if value < 0.0:
        raise ValueError(f"{name}: {param} must be 0 or more, not {value}")


def _shapes_differ(name: str, pred: Tensor, target: Tensor, wanted: str) -> ValueError:
    return ValueError(
        f"{name}: pred {tuple(pred.shape)} does not go with target {tuple(target.shape)};"
        f" it takes a target of {wanted}, and broadcasts nothing"
    )
