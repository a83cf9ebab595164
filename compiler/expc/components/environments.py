"""Environments: batched, seeded from outside, with declared events. Their code is `expc_runtime.envs`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from expc.components.core import Component, Params

Layout = Literal["three", "four", "five", "six", "seven", "eight"]

PADS: dict[str, int] = {"three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
"""Pads of each layout, all of which the target touches in ascending order."""

RANDOM_REWARDS: dict[str, float] = {
    "three": 0.42, "four": 0.007, "five": 0.0, "six": 0.0, "seven": 0.0, "eight": 0.0,
}  # fmt: skip
"""Reward events of a uniform random policy in 1,000 steps, measured on the reference environment."""


class EnvSlot(Params):
    """What any environment takes beside its own parameters."""

    batch: Annotated[int, Field(ge=1)] = Field(1, description="copies that run side by side")


class PinPad(Params):
    """Parameters of `pinpad`."""

    layout: Layout = Field(description="where the pads lie, and how many")
    time_limit: int = Field(10000, ge=1, description="steps after which an episode is cut")
    variant: Literal["reference", "port"] = Field(
        "reference", description="the rules: of the published environment, or of its Gymnasium port"
    )
    targets: list[str] | None = Field(
        None, description="sequences of pads that the port pays for, such as `123`"
    )


ENVIRONMENTS = (
    Component(
        "env", "pinpad", "Visual Pin Pad: touch the pads in order (Hafner 2022, Director)", PinPad,
        "expc_runtime.envs.pinpad:PinPad", actions=5,
    ),
)  # fmt: skip
