"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from expc.components.core import Component, Params

Beta = Annotated[float, Field(ge=0, lt=1)]


class Adam(Params):
    """Parameters of `adam`."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    betas: list[Beta] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="decay of the two moments"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, added to the gradient")


class AdamW(Params):
    """Parameters of `adamw`."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    betas: list[Beta] = Field(
        [0.9, 0.999], min_length=2, max_length=2, description="decay of the two moments"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.01, ge=0, description="decay of weights, apart from the gradient")


class Sgd(Params):
    """Parameters of `sgd`."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="share of the last step kept")
    nesterov: bool = Field(False, description="look ahead along the momentum")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, added to the gradient")


class OptimSlot(Params):
    """What any optimizer takes beside its own parameters."""

    decay: Literal["weights", "all"] = Field(
        "weights", description="what weight decay pulls on: weights alone, or norms and biases too"
    )


class PartsSlot(OptimSlot):
    """What the one optimizer of a net takes beside its own parameters."""

    trains: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="parts that it covers; every one that is not frozen if not set"
    )


def _no_momentum(params: Sgd) -> Mapping[str, str]:
    return {} if params.momentum else {"nesterov": "momentum"}


OPTIMIZERS = (
    Component(
        "optim", "adam", "Adam (Kingma and Ba 2015)", Adam, "torch.optim:Adam",
        traits=frozenset({"adds_decay_to_gradient"}),
    ),
    Component("optim", "adamw", "AdamW (Loshchilov and Hutter 2019)", AdamW, "torch.optim:AdamW"),
    Component(
        "optim", "sgd", "stochastic gradient descent", Sgd, "torch.optim:SGD", off=_no_momentum,
        traits=frozenset({"adds_decay_to_gradient"}),
    ),
)  # fmt: skip


class Ramp(Params):
    """How long a rate climbs, on one clock."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="passes over the data")
    updates: Annotated[int, Field(ge=1)] | None = Field(None, description="batches trained on")


class Warmup(Params):
    """Parameters of a schedule that may warm up."""

    warmup: Ramp | None = Field(
        None, description="how long the rate climbs: `{epochs: 1}` or `{updates: 100}`"
    )


class Decay(Warmup):
    """Parameters of a schedule that falls after its warm-up."""

    floor: float = Field(0.0, ge=0, lt=1, description="share of the rate that is left at the end")


SCHEDULES = (
    Component(
        "schedule", "constant", "one rate, after a warm-up", Warmup, "expc_runtime.optim:constant"
    ),
    Component(
        "schedule", "cosine", "half a cosine down, after a warm-up", Decay,
        "expc_runtime.optim:warmup_cosine",
    ),
    Component(
        "schedule", "linear", "a straight line down, after a warm-up", Decay,
        "expc_runtime.optim:linear",
    ),
)  # fmt: skip
