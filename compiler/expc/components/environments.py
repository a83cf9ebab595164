"""Environments: batched, seeded from outside, with declared events. Their code is `expc_runtime.envs`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _targets_can_be_met(self) -> Self:
        last = PADS[self.layout]
        for target in self.targets or ():
            if not target or not all(pad in "12345678"[:last] for pad in target):
                raise ValueError(
                    f"has target `{target}`, but the pads of `{self.layout}` are 1 to {last}"
                )
            if any(one == two for one, two in pairwise(target)):
                raise ValueError(
                    f"has target `{target}`, and no pad is touched twice running: it never pays"
                )
        return self


def _off(params: PinPad) -> Mapping[str, str]:
    return {"targets": "variant"} if params.variant == "reference" else {}


def _never(params: PinPad) -> Mapping[str, str]:
    """What can't happen: the port never respawns, and pays for its targets alone."""
    if params.variant == "reference":
        return {}
    unpaid = {} if params.targets else {"reward": "the port pays for `targets`, and there are none"}
    return {"respawn": "the port never moves a player", **unpaid}


def _rewards(params: PinPad) -> float | None:
    """Known of the reference, whose target is every pad in order."""
    return RANDOM_REWARDS[params.layout] if params.variant == "reference" else None


ENVIRONMENTS = (
    Component(
        "env", "pinpad", "Visual Pin Pad: touch the pads in order (Hafner 2022, Director)", PinPad,
        "expc_runtime.envs.pinpad:PinPad", actions=5,
        events=("reward", "pad_enter", "pad_leave", "respawn"), never=_never, rewards=_rewards, off=_off,
        traits=frozenset({"frames_of_few_cells"}),
    ),
)  # fmt: skip
