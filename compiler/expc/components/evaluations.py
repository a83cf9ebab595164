"""Evaluations of a trained stage. Their code is `expc_runtime.evals`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from expc.components.core import Component, Params

Event = Literal["reward", "pad_enter", "pad_leave", "respawn", "frame_delta", "reward_or_delta"]
Picture = Literal["grid", "internal", "fired"]

FIGURES: Mapping[str, str] = {
    "event_rate": "", "event_at_boundary": "higher", "event_at_nonboundary": "lower",
    "lift_over_event_rate": "higher", "auc_read_prob": "higher", "perm_p_value": "lower",
    "periodic_baseline": "lower",
}  # fmt: skip
"""What is measured for each event, and which way is better."""


BY_QUANTILE = frozenset({"frame_delta", "reward_or_delta"})
"""Events that a percentile of the frames' changes decides; the others are told by the environment."""

UNIONS = {"reward_or_delta": ("reward", "frame_delta")}
"""Events that are one or the other of two."""


class BoundaryAlignment(Params):
    """Parameters of `boundary_alignment`."""

    events: list[Event] = Field(
        ["pad_enter", "frame_delta", "reward"],
        min_length=1,
        description="what boundaries are held against",
    )
    percentile: float = Field(
        90.0,
        gt=0,
        lt=100,
        description="frames that change more than this share of all are delta events",
    )
    permutations: Annotated[int, Field(ge=1)] = Field(
        1000, description="draws of the permutation test"
    )
    episodes: Annotated[int, Field(ge=1)] = Field(4, description="held-out episodes, at most")
    pictures: list[Picture] = Field(
        ["grid", "internal", "fired"], description="what is drawn of the first episode"
    )
    length: Annotated[int, Field(ge=2)] = Field(20, description="frames of a picture's window")

    @field_validator("events", "pictures")
    @classmethod
    def _each_once(cls, listed: list[str]) -> list[str]:
        twice = next((each for each in listed if listed.count(each) > 1), None)
        if twice is not None:
            raise ValueError(f"has `{twice}` twice, which is one and would count as two")
        return listed


def _figures(params: BoundaryAlignment) -> Mapping[str, str]:
    """Metric -> which way is better."""
    of_events = {f"{event}.{name}": way for event in params.events for name, way in FIGURES.items()}
    return {
        **of_events,
        "boundary_ratio_eval": "",
        "boundary_ratio_train": "",
        "forced_ratio": "lower",
    }


def _unread(params: BoundaryAlignment) -> Mapping[str, str]:
    """A percentile is that of frames' changes, a window that of two pictures."""
    percentile = {} if BY_QUANTILE & {*params.events} else {"percentile": "events"}
    window = {} if {"grid", "internal"} & {*params.pictures} else {"length": "pictures"}
    return {**percentile, **window}


EVALUATIONS = (
    Component(
        "evaluation", "boundary_alignment", "whether segment boundaries fall on events", BoundaryAlignment,
        "expc_runtime.evals.boundaries:BoundaryAlignment", logged=_figures, off=_unread,
        traits=frozenset({"reads_boundaries"}),
    ),
)  # fmt: skip
