"""The keys of a `supervised` stage, and what follows from them without lowering."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from expc.components.data import DataSlot
from expc.components.optimizers import PartsSlot
from expc.experiment import Stage
from expc.kinds.shapes import Every, HeadSlot, Init, LossSlot, MetricSlot, Until, taken
from expc.spec import Raw, Shape, Slot, StageRun

OPTIMIZER = "model"
"""The name of the one optimizer: its sum is `total_model`."""


class Supervised(Shape):
    """The keys of a supervised stage."""

    kind: Literal["supervised"]
    about: str | None = Field(None, description="what this stage is for")
    data: Annotated[Raw, Slot("data", DataSlot)] = Field(description="rows, and how they are split")
    model: Annotated[dict[str, Raw], Slot("model", many=True)] = Field(
        min_length=1,
        description="parts in the order that features pass them; declare once at the top to share",
    )
    heads: Annotated[dict[str, Raw], Slot("head", HeadSlot, many=True)] = Field(
        min_length=1, description="answers, by name"
    )
    loss: Annotated[dict[str, Raw], Slot("loss", LossSlot, many=True)] = Field(
        min_length=1, description="terms of the sum that is trained, by name"
    )
    metrics: Annotated[dict[str, Raw], Slot("metric", MetricSlot, many=True)] = Field(
        default_factory=dict, description="what is measured on held-out rows, by name"
    )
    optim: Annotated[Raw, Slot("optim", PartsSlot)] = Field(description="the optimizer")
    schedule: Annotated[Raw | None, Slot("schedule")] = Field(
        None, description="the learning rate over time"
    )
    precision: Literal[32, "bf16-mixed", "16-mixed"] = Field(
        32, description="numbers of the forward pass"
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest gradient norm")
    accumulate: Annotated[int, Field(ge=1)] = Field(1, description="batches for one optimizer step")
    microbatch: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="share of a batch that goes through the net at once; its gradients are gathered to those of the batch",
    )
    compile: bool = Field(False, description="compile the nets with torch.compile")
    norm_statistics: Literal["running", "reestimated"] = Field(
        "running",
        description="what batch norm knows in eval mode: its running mean, or one over the train rows, made anew before each measurement",
    )
    until: Until = Field(description="a budget, or a threshold with a budget")
    checkpoint: Every = Field(default_factory=Every, description="when and how many are kept")
    monitor: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(
        default_factory=dict, description="name -> what it watches; the best of each is kept"
    )
    init: dict[str, Init] = Field(default_factory=dict, description="part -> its starting weights")
    frozen: dict[str, Init] = Field(
        default_factory=dict,
        description="part -> the weights it has throughout: never trained, always in eval mode",
    )
    run: StageRun | None = Field(
        None, description="how runs of this stage are carried out, where it differs"
    )


def parents(shape: Supervised) -> Iterable[str]:
    """Stages whose results this one starts from."""
    return [start.from_ for _, _, start in taken(shape) if start.from_]


def logged(stage: Stage) -> dict[str, str]:
    """Every key a stage logs, and whether higher or lower is better there."""
    keys = {f"total_{OPTIMIZER}": "lower", **dict.fromkeys(stage.maps["loss"], "lower")}
    keys.update({name: use.component.better for name, use in stage.maps.get("metrics", {}).items()})
    splits = ["train", *(split for split in ("val", "test") if has_split(stage, split))]
    return {
        f"{split}/{key}": better
        for split in splits
        for key, better in keys.items()
        if split != "train" or key not in stage.maps.get("metrics", {})
    }


def has_split(stage: Stage, split: str) -> bool:
    """Whether a stage holds out rows under that name."""
    return bool(getattr(stage.uses["data"].slot.split, split))
