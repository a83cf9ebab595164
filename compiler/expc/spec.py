"""The shape of a spec that every kind shares: header, stages, sweep. Kinds add the shape of their stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expc.components.core import Family, Params


class Shape(BaseModel):
    """A closed, strict shape: unknown keys and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True
    )


Raw = dict[str, Any]
"""A component as written: `use:` and its siblings, validated by the component's own parameters."""


@dataclass(frozen=True, slots=True)
class Named:
    """An entry that a map of components has by name, of a family of its own; `default` is used where it is left out."""

    name: str
    family: Family
    default: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one component, or for a map of them; `shape` is what the place itself adds.

    A map is open (`many`), or has the entries that `named` lists and no others. With `brought`, components of the stage add
    entries of their own, whose `use` need not be written.
    """

    family: Family
    shape: type[Params] | None = None
    many: bool = False
    named: tuple[Named, ...] = ()
    brought: bool = False

    @property
    def is_map(self) -> bool:
        """Whether it holds several components."""
        return self.many or bool(self.named)

    @property
    def keys(self) -> list[str]:
        """What the place itself adds to a component."""
        return list(self.shape.model_fields) if self.shape is not None else []

    def takes(self, entry: str) -> bool:
        """Whether a map that lists its entries has one of this name."""
        return any(each.name == entry for each in self.named)

    def family_of(self, entry: str) -> Family:
        """The family of one entry of a map."""
        return next((each.family for each in self.named if each.name == entry), self.family)


class Clock(Shape):
    """A span of training on one named clock."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="passes over the data")
    updates: Annotated[int, Field(ge=1)] | None = Field(None, description="batches trained on")
    minutes: Annotated[float, Field(gt=0)] | None = Field(None, description="wall time")


Axis = Annotated[list[Any], Field(min_length=1, description="the values this path takes")]


class Sweep(Shape):
    """What varies between runs."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default_factory=lambda: [0], min_length=1, description="one run for each"
    )
    grid: dict[str, Axis] = Field(default_factory=dict, description="every combination of values")
    zip: dict[str, Axis] = Field(default_factory=dict, description="values taken side by side")
    conditions: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="named sets of overrides; `STAGE: skip` leaves a stage out",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="combinations that are not run"
    )


class Header(Shape):
    """The top of a spec."""

    expc: Literal[1] = Field(description="version of the language")
    name: str = Field(description="names the folders under generated/ and runs/")
    about: str = Field(description="the question this experiment answers, in a sentence")
    extends: str | None = Field(None, description="a spec to start from; this one's keys win")
    model: dict[str, Raw] = Field(
        default_factory=dict, description="parts shared by all stages, declared once"
    )
    stages: dict[str, Raw] = Field(min_length=1, description="what happens, by name")
    sweep: Sweep = Field(default_factory=Sweep, description="what varies between runs")
