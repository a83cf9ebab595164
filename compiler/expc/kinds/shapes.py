"""Shapes that several kinds of stage share: budgets and gates, checkpoints, starting weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expc.components.core import Params
from expc.spec import Clock, Shape

Count = Annotated[int, Field(ge=1)]


class Until(Shape):
    """When a stage ends: a plain budget, or a threshold with a budget."""

    epochs: Count | None = Field(None, description="passes over the data")
    updates: Count | None = Field(None, description="batches trained on")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="wall time")
    metric: str | None = Field(None, description="the metric, or loss, that must get there")
    on: Literal["val", "train"] = Field("val", description="the split it is measured on")
    mode: Literal["eval", "train"] = Field(
        "eval", description="the mode of the model while it is measured"
    )
    at_least: float | None = Field(None, description="met at this value or above")
    at_most: float | None = Field(None, description="met at this value or below")
    above: float | None = Field(None, description="met above this value")
    below: float | None = Field(None, description="met below this value")
    patience: Count | None = Field(
        None, description="epochs without a better value before giving up"
    )
    budget: Clock | None = Field(None, description="how long it may take")
    otherwise: Literal["fail", "warn", "stop"] = Field(
        "fail", description="what happens when the budget ends first"
    )

    @property
    def bound(self) -> tuple[str, float] | None:
        """The threshold's word and value."""
        for word in BOUNDS:
            value = getattr(self, word)
            if value is not None:
                return word, value
        return None

    @property
    def clock(self) -> Clock | None:
        """The budget, wherever it was written."""
        if self.budget is not None:
            return self.budget
        if self.epochs or self.updates or self.minutes:
            return Clock(epochs=self.epochs, updates=self.updates, minutes=self.minutes)
        return None


BOUNDS = ("at_least", "at_most", "above", "below")
CLOCKS = {
    "epochs": "Epochs",
    "updates": "Updates",
    "minutes": "Minutes",
    "env_steps": "EnvSteps",
}


class EnvSteps(Shape):
    """A span counted in steps of the environment."""

    env_steps: Count = Field(description="steps of the environment, all its copies together")


class Updates(Shape):
    """A span counted in batches."""

    updates: Count = Field(description="batches trained on")


class Every(Shape):
    """How often checkpoints are kept."""

    every: Clock | None = Field(None, description="time or training between two checkpoints")
    keep: Annotated[int, Field(ge=2)] = Field(
        2, description="verified generations kept; two at least"
    )


class Init(Shape):
    """Where a part's starting weights come from."""

    file: str | None = Field(None, description="a file of weights, from the project root")
    from_: str | None = Field(None, alias="from", description="a stage whose result is taken")
    part: str | None = Field(None, description="the part there, when its name differs")
    best: str | None = Field(
        None, description="a name under that stage's `monitor`; last if not set"
    )

    missing: list[str] = Field(
        default_factory=list,
        description="tensors of the part that may lack there, by key; they start at random",
    )
    extra: list[str] = Field(
        default_factory=list, description="tensors that may be there and nothing here takes, by key"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.from_ is None):
            raise ValueError("takes weights either `from` a stage or out of a `file`")
        if self.best is not None and self.from_ is None:
            raise ValueError("has `best`, which only a stage has; a file holds one set of weights")
        return self


def taken(shape: object) -> Iterator[tuple[str, str, Init]]:
    """What a stage takes over, trained on or not: the key (`init` or `frozen`), the part, where it comes from."""
    for key in ("init", "frozen"):
        for part, init in getattr(shape, key, {}).items():
            yield key, part, init


class LossSlot(Params):
    """What any loss takes beside its own parameters."""

    weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="factor in the sum; 1 if not set"
    )
    of: str | None = Field(
        None, description="the head it reads; the one of its own name if not set"
    )
    target: str | None = Field(
        None, description="the column it is compared with; the one of its own name if not set"
    )


class HeadSlot(Params):
    """What any head takes beside its own parameters."""

    gives: Literal["logits", "class_logits", "prob", "real"] | None = Field(
        None, description="what its numbers mean; from the target column if not set"
    )


class MetricSlot(Params):
    """What any metric takes beside its own parameters."""

    of: str = Field(description="the head it reads")
    target: str | None = Field(
        None, description="the column; the one of the head's loss if not set"
    )
    reads: Literal["prob", "logits"] | None = Field(
        None, description="what its threshold assumes; converted where that is possible if not set"
    )
