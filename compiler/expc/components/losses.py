"""Losses. Their code is `expc_runtime.losses`, on logits unless the ports say otherwise."""

from __future__ import annotations

from pydantic import Field

from expc.components.core import Component, Form, Params
from expc.ir import (
    BinaryLogits,
    ClassId,
    ClassLogits,
    ClassProbs,
    Image,
    Latent,
    Prob,
    Real,
    TwoHotLogits,
)

_TWO_CLASSES = (Form((BinaryLogits, Prob)),)
_CLASSES = (Form((ClassLogits, ClassId)), Form((ClassLogits, ClassProbs)))
_VALUES = tuple(Form((port, port)) for port in (Prob, Real, ClassProbs, Image))


class Bce(Params):
    """Parameters of `bce`."""

    pos_weight: float | None = Field(None, gt=0, description="weight of the yes side")


class Nothing(Params):
    """No parameters."""


class SmoothL1(Params):
    """Parameters of `smooth_l1`."""

    beta: float = Field(1.0, gt=0, description="where the square turns into a line")


class Focal(Params):
    """Parameters of `focal`."""

    gamma: float = Field(2.0, ge=0, description="how much easy samples fade")
    alpha: float | None = Field(None, gt=0, lt=1, description="weight of the yes side")


class CrossEntropy(Params):
    """Parameters of `cross_entropy`."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")


class Gce(Params):
    """Parameters of `gce`."""

    q: float = Field(0.7, gt=0, le=1, description="0 is cross-entropy, 1 is mean absolute error")
    negative: float = Field(0.0, ge=0, description="penalty on mass given to wrong classes")


class Asymmetric(Params):
    """Parameters of `asymmetric`."""

    gamma_pos: float = Field(0.0, ge=0, description="focus on hard positives")
    gamma_neg: float = Field(0.0, ge=0, description="focus on hard negatives")
    clip: float = Field(0.0, ge=0, lt=1, description="negatives easier than this cost nothing")


class TwoHot(Params):
    """Parameters of `twohot_symlog`."""

    bins: int = Field(255, ge=3, description="buckets between symlog -20 and 20")


_STATES = (Form((Latent, Latent)),)
_STATE = (Form((Latent,)),)
"""Terms that a dynamics brings with it: methods of its own, over posterior and prior, or the posterior alone."""

LOSSES = (
    Component(
        "loss", "bce", "binary cross-entropy on logits", Bce,
        "expc_runtime.losses:bce", _TWO_CLASSES, traits=frozenset({"proper", "constant_by_entropy"}),
    ),
    Component(
        "loss", "mse", "squared error of probabilities or real numbers", Nothing,
        "expc_runtime.losses:mse", _VALUES, traits=frozenset({"proper", "flat_at_the_ends", "constant_by_variance"}),
    ),
    Component(
        "loss", "smooth_l1", "squared near zero, linear far from it (Girshick 2015)", SmoothL1,
        "expc_runtime.losses:smooth_l1", _VALUES, traits=frozenset({"flat_at_the_ends"}),
    ),
    Component(
        "loss", "focal", "cross-entropy that fades on easy samples (Lin 2017)", Focal,
        "expc_runtime.losses:focal", _TWO_CLASSES,
    ),
    Component(
        "loss", "cross_entropy", "cross-entropy on class logits", CrossEntropy,
        "expc_runtime.losses:cross_entropy", _CLASSES, traits=frozenset({"proper"}),
    ),
    Component(
        "loss", "kl_div", "KL(target || softmax) on class logits", Nothing,
        "expc_runtime.losses:kl_div", (Form((ClassLogits, ClassProbs)),), traits=frozenset({"proper"}),
    ),
    Component(
        "loss", "gce", "generalised cross-entropy (Zhang and Sabuncu 2018)", Gce,
        "expc_runtime.losses:gce", _CLASSES, traits=frozenset({"starves_many_classes"}),
    ),
    Component(
        "loss", "asymmetric", "asymmetric loss for many labels (Ridnik 2021)", Asymmetric,
        "expc_runtime.losses:asymmetric", _TWO_CLASSES,
    ),
    Component(
        "loss", "mse_sum", "squared error, summed over an image", Nothing,
        "expc_runtime.losses:mse_sum", (Form((Image, Image)),),
    ),
    Component(
        "loss", "twohot_symlog", "cross-entropy to two neighbouring buckets of symlog (Hafner 2023)", TwoHot,
        "expc_runtime.losses:twohot_symlog", (Form((TwoHotLogits, Real)),), of_head=("bins",),
    ),
    Component("loss", "kl_dyn", "KL that trains the prior, the posterior held still", Nothing, ".kl", _STATES),
    Component("loss", "kl_rep", "KL that trains the posterior, the prior held still", Nothing, ".kl", _STATES),
    Component("loss", "kl_mask", "KL of the boundary detectors; trains the prior one", Nothing, ".kl", _STATES),
    Component("loss", "kl_rate", "KL of the boundary's probability from a rate", Nothing, ".rate_prior", _STATE),
)  # fmt: skip
