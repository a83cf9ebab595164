"""Model parts and heads. Their code is `expc_runtime.models`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

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


class ResNet(Params):
    """Parameters of `resnet`."""

    channels: list[Width] = Field(
        [64, 128, 256, 512], min_length=1, description="width of the 3x3 convolutions, by stage"
    )
    blocks: list[Width] = Field([2, 2, 2, 2], min_length=1, description="blocks of each stage")
    strides: list[Width] = Field(
        [1, 2, 2, 2], min_length=1, description="stride of each stage's first block"
    )
    expansion: Width = Field(4, description="channels of a stage over `channels`")
    embedding: Width = Field(32, description="numbers for the piece on a cell, and for the hand")

    @model_validator(mode="after")
    def _one_entry_for_each_stage(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in ("channels", "blocks", "strides")}
        if len({*lengths.values()}) > 1:
            told = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise ValueError(f"needs one entry for each stage in its lists, and has {told}")
        return self


class MlpMixer(Params):
    """Parameters of `mlp_mixer`."""

    width: Width = Field(256, description="channels of a cell, and features it gives")
    layers: Width = Field(16, description="blocks")
    token_width: Width = Field(128, description="width inside the MLP across cells")
    channel_width: Width = Field(1024, description="width inside the MLP across channels")
    dropout: float = Field(0.15, ge=0, lt=1, description="share dropped in training")
    embedding: Width = Field(32, description="numbers for the piece on a cell, and for the hand")


class PlanesVit(Params):
    """Parameters of `planes_vit`."""

    width: Width = Field(256, description="channels of a cell, and features it gives")
    depth: Width = Field(6, description="blocks")
    heads: Width = Field(4, description="attention heads, which divide the width")
    mlp_ratio: float = Field(3.0, gt=0, description="width inside the MLP over `width`")
    dropout: float = Field(0.1, ge=0, lt=1, description="share dropped in training")
    checkpointing: bool = Field(
        False, description="keep less for the backward pass, and compute it again"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"has a width of {self.width}, which {self.heads} heads do not divide")
        return self


class Vit(PlanesVit):
    """Parameters of `vit`."""

    width: Width = Field(512, description="channels of a cell, and features it gives")
    heads: Width = Field(8, description="attention heads, which divide the width")
    mlp_ratio: float = Field(4.0, gt=0, description="width inside the MLP over `width`")
    embedding: Width = Field(32, description="numbers for the piece on a cell, and for the hand")


class LinearHead(Params):
    """Parameters of `linear_head`."""

    out: Width = Field(description="numbers it gives for one sample; 1 gives one number, not a row")
    hidden: Width | None = Field(None, description="width of a hidden layer; none when not set")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of features dropped in training")


MODELS = (
    Component(
        "model", "conv_net", "3x3 convolutions, then an average over the image", ConvNet,
        "expc_runtime.models:ConvNet", (Form((Features,)),), inputs=("image",), traits=frozenset({"norm", "running_statistics"}),
    ),
    Component(
        "model", "mlp", "fully connected layers", Mlp,
        "expc_runtime.models:MLP", (Form((Features,)),), inputs=("features",), needs_width=True,
    ),
    Component(
        "model", "resnet", "residual bottleneck blocks over a shogi board", ResNet,
        "expc_runtime.models:ResNet", (Form((Features,)),), inputs=("board",), optional=("hand",), traits=frozenset({"norm", "running_statistics"}),
    ),
    Component(
        "model", "mlp_mixer", "MLPs across the cells and the channels of a shogi board", MlpMixer,
        "expc_runtime.models:MLPMixer", (Form((Features,)),), inputs=("board",), optional=("hand",),
        traits=frozenset({"layer_norm"}),
    ),
    Component(
        "model", "vit", "a transformer over the cells of a shogi board", Vit,
        "expc_runtime.models:ViT", (Form((Features,)),), inputs=("board",), optional=("hand",),
        traits=frozenset({"layer_norm"}),
    ),
    Component(
        "model", "planes_vit", "a transformer over 104 binary planes of a shogi board", PlanesVit,
        "expc_runtime.models:PlanesViT", (Form((Features,)),), inputs=("board",), optional=("hand",),
        traits=frozenset({"layer_norm"}),
    ),
)  # fmt: skip

HEADS = (
    Component(
        "head", "linear_head", "one linear layer, or two with GELU between", LinearHead,
        "expc_runtime.models:LinearHead", (Form((Features,)),),
    ),
)  # fmt: skip
