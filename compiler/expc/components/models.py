"""Model parts and heads. Their code is `expc_runtime.models`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from expc.components.core import Component, Form, Params
from expc.ir import Features

Width = Annotated[int, Field(ge=1)]


class ConvNet(Params):
    """Parameters of `conv_net`."""

    in_channels: Width = Field(1, description="channels of the image")
    channels: list[Width] = Field([16, 32], min_length=1, description="width of each block")
    norm: bool = Field(True, description="BatchNorm after each convolution")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped in training")


class Mlp(Params):
    """Parameters of `mlp`."""

    in_features: Width | None = Field(
        None, description="numbers in one sample, flattened; a later part is given it"
    )
    hidden: list[Width] = Field([64, 64], min_length=1, description="width of each layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped in training")


class LinearHead(Params):
    """Parameters of `linear_head`."""

    out: Width = Field(description="numbers it gives for one sample; 1 gives one number, not a row")
    hidden: Width | None = Field(None, description="width of a hidden layer; none when not set")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped in training")


MODELS = (
    Component(
        "model", "conv_net", "3x3 convolutions, then an average over the image", ConvNet,
        "expc_runtime.models:ConvNet", (Form((Features,)),), inputs=("image",), traits=frozenset({"norm"}),
    ),
    Component(
        "model", "mlp", "fully connected layers", Mlp,
        "expc_runtime.models:MLP", (Form((Features,)),), inputs=("features",), needs_width=True,
    ),
)  # fmt: skip

HEADS = (
    Component(
        "head", "linear_head", "one linear layer, or two with GELU between", LinearHead,
        "expc_runtime.models:LinearHead", (Form((Features,)),),
    ),
)  # fmt: skip
