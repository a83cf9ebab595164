"""The keys of an `evaluate` stage, and what follows from them without lowering."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from expc.experiment import Stage
from expc.kinds.shapes import BOUNDS, Count
from expc.spec import Raw, Shape, Slot, StageRun


class Bound(Shape):
    """A metric and what it must reach."""

    metric: str = Field(description="a metric of this stage, such as `pad_enter.perm_p_value`")
    at_least: float | None = Field(None, description="met at this value or above")
    at_most: float | None = Field(None, description="met at this value or below")
    above: float | None = Field(None, description="met above this value")
    below: float | None = Field(None, description="met below this value")

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if len(self.bounds) != 1:
            raise ValueError(
                f"takes one bound, not {len(self.bounds)}\nwrite one of `{'`, `'.join(BOUNDS)}`, such as `above: 2.0`"
            )
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by their word."""
        return {word: value for word in BOUNDS if (value := getattr(self, word)) is not None}


class Accept(Shape):
    """When the question of the stage is answered with yes."""

    all: list[Bound] = Field(min_length=1, description="bounds that one run must meet together")
    seeds: Count = Field(1, description="runs of a condition that must meet them")


class Evaluate(Shape):
    """The keys of an evaluation stage."""

    kind: Literal["evaluate"]
    about: str | None = Field(None, description="what this stage is for")
    of: str = Field(description="the stage that is measured")
    measure: Annotated[Raw, Slot("evaluation")] = Field(description="what is measured")
    accept: Accept | None = Field(None, description="when the answer is yes")
    run: StageRun | None = Field(
        None, description="how runs of this stage are carried out, where it differs"
    )


def parents(shape: Evaluate) -> Iterable[str]:
    """The stage that is measured."""
    return (shape.of,)


def logged(stage: Stage) -> dict[str, str]:
    """Every metric of the evaluation, and which way is better."""
    use = stage.uses["measure"]
    found = use.component.logged
    return dict(found(use.params)) if found is not None else {}
