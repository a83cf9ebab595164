"""The keys of a `world_model` stage, and what follows from them without lowering."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expc.components.core import Params
from expc.components.environments import EnvSlot
from expc.components.optimizers import OptimSlot
from expc.experiment import Stage
from expc.kinds.shapes import Count, EnvSteps, Updates
from expc.spec import Named, Raw, Shape, Slot, StageRun

PARTS = (
    Named("encoder", "encoder"),
    Named("dynamics", "dynamics"),
    Named("decoder", "decoder"),
    Named("reward", "layers", default="dense"),
    Named("cont", "layers", default="dense"),
    Named("actor", "layers", default="dense"),
    Named("critic", "layers", default="dense"),
)
OPTIMIZERS = ("world", "actor", "critic")
RECONSTRUCTED = {"image": "mse_sum", "reward": "twohot_symlog", "cont": "bce"}
"""What heads tell of a state; each has a loss of its name, and this is the usual one."""


class WorldOptimSlot(OptimSlot):
    """What an optimizer takes beside its own parameters, where there are several."""

    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest gradient norm")


class WorldLossSlot(Params):
    """What a loss takes beside its own parameters."""

    weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="factor in the sum; 1 if not set"
    )


class Replay(Shape):
    """What is remembered, and how often it is learned from."""

    capacity: Count = Field(1_000_000, description="frames kept; the oldest episodes go first")
    batch: Count = Field(16, description="sequences in a batch")
    length: Annotated[int, Field(ge=2)] = Field(64, description="frames of each")
    train_ratio: Annotated[float, Field(gt=0)] = Field(
        512.0, description="replayed frames for each step of the environment"
    )
    prefill: EnvSteps = Field(description="random steps before the first update")
    pretrain: Updates | None = Field(None, description="updates at the first step after them")

    @model_validator(mode="after")
    def _holds_the_prefill(self) -> Self:
        if self.capacity < self.prefill.env_steps:
            raise ValueError(
                f"has a `capacity` of {self.capacity} frames, and `prefill` alone is {self.prefill.env_steps}\n"
                "keep more frames, or begin with fewer random steps"
            )
        return self


class Evaluations(Shape):
    """Episodes that are measured and never learned from."""

    every: EnvSteps = Field(description="steps between two evaluations")
    episodes: Count = Field(1, description="episodes of each")
    policy: Literal["mode", "sample"] = Field("mode", description="how the actor's answer is read")


class Budget(Shape):
    """How long a stage trains, on one clock."""

    env_steps: Count | None = Field(None, description="steps of the environment, prefill included")
    updates: Count | None = Field(None, description="batches trained on")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="wall time")

    @property
    def clock(self) -> Self:
        """The budget itself: it has no gate beside it."""
        return self


class Saving(Shape):
    """Time or training between two checkpoints."""

    updates: Count | None = Field(None, description="batches trained on")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="wall time")


class WorldEvery(Shape):
    """How often checkpoints are kept."""

    every: Saving | None = Field(None, description="time or training between two checkpoints")
    keep: Annotated[int, Field(ge=2)] = Field(
        2, description="verified generations kept; two at least"
    )


class WorldModel(Shape):
    """The keys of a world-model stage."""

    kind: Literal["world_model"]
    about: str | None = Field(None, description="what this stage is for")
    env: Annotated[Raw, Slot("env", EnvSlot)] = Field(description="where episodes come from")
    model: Annotated[dict[str, Raw], Slot("layers", named=PARTS)] = Field(
        min_length=1, description="encoder, dynamics, decoder; layers of the heads"
    )
    loss: Annotated[dict[str, Raw], Slot("loss", WorldLossSlot, many=True, brought=True)] = Field(
        min_length=1, description="image, reward and cont; the dynamics adds terms of its own"
    )
    behaviour: Annotated[Raw, Slot("behaviour")] = Field(description="how the actor learns")
    replay: Replay = Field(description="what is remembered, and how often it is learned from")
    optim: Annotated[
        dict[str, Raw],
        Slot("optim", WorldOptimSlot, named=tuple(Named(name, "optim") for name in OPTIMIZERS)),
    ] = Field(min_length=1, description="one optimizer for each of world, actor and critic")
    precision: Literal[32, "bf16-mixed", "16-mixed"] = Field(
        32, description="numbers of the forward pass"
    )
    compile: bool = Field(False, description="compile the nets with torch.compile")
    until: Budget = Field(description="a budget")
    evaluate: Evaluations = Field(description="episodes that are measured and kept for evaluation")
    checkpoint: WorldEvery = Field(
        default_factory=WorldEvery, description="when and how many are kept"
    )
    monitor: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(
        default_factory=dict, description="name -> what it watches; the best of each is kept"
    )
    run: StageRun | None = Field(
        None, description="how runs of this stage are carried out, where it differs"
    )

    @model_validator(mode="after")
    def _learns_after_prefill(self) -> Self:
        prefill = self.replay.prefill
        if self.until.env_steps and self.until.env_steps <= prefill.env_steps:
            raise ValueError(
                f"ends at {self.until.env_steps} steps, all of them random: "
                f"`replay.prefill` takes {prefill.env_steps}\n"
                "set a smaller `replay.prefill`, or a later end in `until`: it counts them too"
            )
        return self


def parents(shape: WorldModel) -> Iterable[str]:
    """A world model starts from nothing."""
    return ()


def logged(stage: Stage) -> dict[str, str]:
    """Every key a stage logs, and whether higher or lower is better there."""
    totals = [f"total_{name}" for name in OPTIMIZERS]
    terms = dict.fromkeys([*stage.maps["loss"], "policy", "value", "slow", *totals], "lower")
    train = {f"train/{key}": better for key, better in terms.items()}
    episodes = {"return": "higher", "length": "", "reward_events": "higher"}
    reports = stage.maps["model"]["dynamics"].component.reports
    return {
        **train,
        **{f"train/{key}": better for key, better in reports.items()},
        "train/entropy": "",
        **{f"train/{key}": episodes[key] for key in ("return", "length")},
        **{f"eval/{key}": better for key, better in episodes.items()},
    }
