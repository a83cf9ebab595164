"""What a component declares: its name, its parameters, its ports, and the runtime name that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from annotated_types import MaxLen, MinLen
from pydantic import BaseModel, ConfigDict

from expc.ir import Port

Family = Literal[
    "data", "model", "head", "loss", "metric", "optim", "schedule",
    "env", "encoder", "dynamics", "decoder", "layers", "behaviour", "evaluation",
]  # fmt: skip


WORDS: Mapping[str, str] = {"optim": "optimizer", "env": "environment", "layers": "layer type"}
"""Families that have another name in a message."""


class Params(BaseModel):
    """Parameters of a component. Strict: what a user wrote is never coerced in silence."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True
    )


@dataclass(frozen=True, slots=True)
class Form:
    """One way to use a component: the ports it takes, and the runtime object that takes them."""

    takes: tuple[Port, ...]
    target: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a data source: what it means, the shape of one sample, and what is known of it without reading it.

    `classes` counts class ids; `prior` is the share of the largest class, or the mean of a probability. `dtype` is written
    where it is not that of the port: int64 for class ids, else float32.
    """

    port: Port
    shape: tuple[int, ...] = ()
    classes: int | None = None
    prior: float | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Component:
    """A declaration. Its torch code lives in the runtime, under `target`.

    `terms` are the losses that a component brings with it, as a function of its parameters (of those in `terms_of`): key -> (loss, weight). `of_head` are
    parameters of a loss that shape the head it reads. `off` names parameters that do nothing beside the others, and for each the one that turns it off.

    Of an environment: how many `actions` it has, the `events` it tells, those that `never` happen and why, and `rewards`,
    the reward events of a uniform random policy in 1,000 steps (None: not known). Of an encoder: the `width` of what it
    gives. Of a dynamics: the number of its `weights`, for a width and a number of actions; the columns that it `observes`
    beside image, action and is_first, as a function of its parameters (of those in `observes_of`); and what it `reports`
    for the log, with which way is better.

    `groups` are keys of a data source that many rows share, such as the game they are of.

    `inputs` are the arguments of a model's `forward`, and `optional` those that it may go without.
    `needs_width` says that a first part of a model must be told `in_features`; later parts are given it. `params` is what a user may write beside `use:`. Parameters that the user did not write are not printed, so the
    runtime's own default holds: a test compares the two. `own` marks a user's code, and `fingerprint` names its text.
    """

    family: Family
    name: str
    about: str
    params: type[Params]
    target: str = ""
    forms: tuple[Form, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    rows: int | None = None
    groups: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needs_width: bool = False
    better: Literal["higher", "lower", ""] = ""
    terms: Callable[[Any], Mapping[str, tuple[str, float]]] | None = None
    terms_of: tuple[str, ...] = ()
    of_head: tuple[str, ...] = ()
    off: Callable[[Any], Mapping[str, str]] | None = None
    actions: int | None = None
    events: tuple[str, ...] = ()
    never: Callable[[Any], Mapping[str, str]] | None = None
    rewards: Callable[[Any], float | None] | None = None
    width: Callable[[Any], int] | None = None
    weights: Callable[[Any, int, int], int] | None = None
    observes: Callable[[Any], tuple[str, ...]] | None = None
    observes_of: tuple[str, ...] = ()
    reports: Mapping[str, str] = field(default_factory=dict)
    logged: Callable[[Any], Mapping[str, str]] | None = None
    traits: frozenset[str] = frozenset()
    own: bool = False
    fingerprint: str = ""

    def fields(self) -> list[str]:
        """Names a user may write, in declaration order."""
        return list(self.params.model_fields)


@dataclass(frozen=True)
class Use:
    """A component as a spec uses it: the declaration, its checked parameters, and which of them were written."""

    component: Component
    params: Params
    path: tuple[str | int, ...]
    slot: Any = None

    @property
    def name(self) -> str:
        """The name after `use:`."""
        return self.component.name

    @property
    def written(self) -> list[str]:
        """Parameters that the spec sets, in declaration order."""
        return [name for name in self.component.fields() if name in self.params.model_fields_set]

    def default(self, name: str) -> Any:
        """The default of a parameter; None when there is no such parameter, or it has none."""
        info = self.component.params.model_fields.get(name)
        return info.get_default() if info is not None and not info.is_required() else None

    def length(self, name: str) -> int | None:
        """How many entries a list must have, where its declaration leaves no choice."""
        info = self.component.params.model_fields.get(name)
        marks = info.metadata if info is not None else []
        least = {mark.min_length for mark in marks if isinstance(mark, MinLen)}
        most = {mark.max_length for mark in marks if isinstance(mark, MaxLen)}
        return next(iter(least & most), None)

    def choices(self, name: str) -> tuple[str, ...]:
        """The words that a parameter may be, where its declaration lists them."""
        info = self.component.params.model_fields.get(name)
        listed = get_args(info.annotation) if info is not None else ()
        literal = info is not None and get_origin(info.annotation) is Literal
        return tuple(map(str, listed)) if literal else ()

    def param(self, name: str) -> Any:
        """The value of a parameter, written or default."""
        return getattr(self.params, name)
